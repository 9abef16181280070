# ---
# jupyter:
#   jupytext:
#     formats: py:percent
# ---

# %% [markdown]
# Figures and tables.

# %% tags=["auto-show"]
# %%remote
import matplotlib.pyplot as plt

plt.plot([1, 3, 2])

# %% tags=["auto-show-semicolon"]
# %%remote
plt.plot([1, 3, 2])
# %% tags=["after-nothing-open"]
# %%remote
print(plt.get_fignums())

# %% tags=["show-in-the-middle"]
# %%remote
print("before")
plt.plot([1, 2])
plt.show()
print("between")
plt.plot([2, 1])
plt.title("second")
plt.show()
print("after")

# %% tags=["two-figures"]
# %%remote
plt.figure(figsize=(2, 2))
plt.plot([0, 1])
plt.figure(figsize=(3, 2))
plt.plot([1, 0])
# %% tags=["figure-result"]
# %%remote
fig, ax = plt.subplots(figsize=(2, 1))
ax.bar(["a", "b"], [1, 2])
plt.close(fig)
fig

# %% tags=["figure-displayed"]
# %%remote
display(fig)
fig.suptitle("changed")
display(fig)

# %% tags=["figure-local"]
fig.get_size_inches().tolist()

# %% tags=["display-id-figure"]
# %%remote
from IPython.display import clear_output

fig, ax = plt.subplots(figsize=(2, 1))
handle = display(fig, display_id=True)
for i in range(3):
    ax.plot([0, i])
    handle.update(fig)
plt.close(fig)

# %% tags=["clear-and-draw"]
# %%remote
for i in range(3):
    clear_output(wait=True)
    plt.figure(figsize=(2, 1))
    plt.plot([0, i])
    plt.show()
    print("epoch", i)

# %% tags=["inline"]
# %%remote
# %matplotlib inline
plt.figure(figsize=(2, 1))
plt.plot([1, 2])
plt.show()

# %% tags=["retina"]
# %%remote
# %config InlineBackend.figure_formats = ["retina"]
plt.figure(figsize=(2, 1))
plt.plot([1, 2])
plt.show()

# %% tags=["svg"]
# %%remote
# %config InlineBackend.figure_formats = ["svg"]
plt.figure(figsize=(2, 1))
plt.plot([1, 2])
plt.show()

# %% tags=["both-formats"]
# %%remote
# %config InlineBackend.figure_formats = {"png", "jpeg"}
plt.figure(figsize=(2, 1))
plt.plot([1, 2])
plt.show()

# %% tags=["set-matplotlib-formats"]
# %%remote
from matplotlib_inline.backend_inline import set_matplotlib_formats

set_matplotlib_formats("png")
plt.figure(figsize=(2, 1))
plt.plot([1, 2])
plt.show()

# %% tags=["rc"]
# %%remote
plt.rcParams["figure.figsize"] = (1, 1)
plt.rcParams["figure.dpi"] = 50
plt.plot([1, 2])
# %% tags=["not-closed"]
# %%remote
# %config InlineBackend.close_figures = False
plt.figure(figsize=(1, 1))
plt.plot([1, 2])
"the value"

# %% tags=["close-all"]
# %%remote
# %config InlineBackend.close_figures = True
plt.close("all")

# %% tags=["error-with-figure"]
# %%remote
plt.figure(figsize=(1, 1))
plt.plot([1, 2])
raise RuntimeError("with a figure open")

# %% tags=["frame"]
# %%remote
import numpy as np
import pandas as pd

df = pd.DataFrame({"a": [1, 2], "b": ["x", None], "c": [0.5, float("nan")]}, index=["r", "s"])
df

# %% tags=["frame-displayed"]
# %%remote
display(df.head(1), df["a"])

# %% tags=["frame-local"]
df.shape

# %% tags=["frame-options"]
# %%remote
pd.set_option("display.max_rows", 4)
pd.DataFrame({"n": range(100)})

# %% tags=["frame-printed"]
# %%remote
print(pd.DataFrame({"n": range(100)}))
pd.reset_option("display.max_rows")

# %% tags=["describe"]
# %%remote
df.describe()

# %% tags=["info"]
# %%remote
df.info()

# %% tags=["styler"]
# %%remote
df.style.highlight_max(subset=["a"]).format(precision=1).set_caption("styled")

# %% tags=["series"]
# %%remote
df["c"]

# %% tags=["index-and-groupby"]
# %%remote
df.groupby("b")["a"].sum()

# %% tags=["frame-plot"]
# %%remote
df.plot(y="a", figsize=(1, 1))

# %% tags=["array"]
# %%remote
np.arange(12).reshape(3, 4)

# %% tags=["big-array"]
# %%remote
np.zeros((2000, 2000))

# %% tags=["plotly"]
# %%remote
import plotly.graph_objects as go
import plotly.io as pio

pio.renderers.default = "plotly_mimetype"
go.Figure(go.Bar(y=[2, 3, 1]))

# %% tags=["plotly-show"]
# %%remote
go.Figure(go.Scatter(x=[1, 2], y=np.array([3.5, 4.5]))).show()

# %% tags=["plotly-notebook"]
# %%remote
go.Figure(go.Bar(y=[2, 3, 1])).show(renderer="notebook_connected")

# %% tags=["plotly-inline"]
# %%remote
go.Figure(go.Bar(y=[2, 3, 1])).show(renderer="notebook")

# %% tags=["pil"]
# %%remote
from PIL import Image as PILImage

PILImage.new("RGB", (3, 3), "red")


# %% tags=["sympy-like"]
# %%remote
class Formula:
    def _repr_latex_(self):
        return r"$\displaystyle x^{2}$"

    def __repr__(self):
        return "x**2"


Formula()
