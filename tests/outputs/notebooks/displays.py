# ---
# jupyter:
#   jupytext:
#     formats: py:percent
# ---

# %% [markdown]
# What a cell displays: every form IPython has, updates, clearing, threads.

# %% tags=["imports"]
# %%remote
from IPython.display import *
import base64, io, os, threading, time

# %% tags=["html"]
# %%remote
display(HTML("<b>bold</b>"))

# %% tags=["html-result"]
# %%remote
HTML("<i>result</i>")

# %% tags=["text-forms"]
# %%remote
display(Markdown("**strong** $x^2$"))
display(Latex(r"\begin{align}a &= b\end{align}"))
display(Math(r"\int_0^1 x\,dx"))
display(Pretty("pretty"))
display(Code("print('hello')", language="python"))

# %% tags=["json"]
# %%remote
display(JSON({"a": [1, 2, {"b": None}]}, expanded=True, root="top"))
display(GeoJSON({"type": "Point", "coordinates": [1, 2]}))

# %% tags=["javascript"]
# %%remote
display(Javascript("element.append('from javascript')"))
Javascript("1 + 1", lib=["https://example.invalid/lib.js"])

# %% tags=["svg"]
# %%remote
SVG("<svg xmlns='http://www.w3.org/2000/svg' width='20' height='20'><circle r='9' cx='10' cy='10'/></svg>")

# %% tags=["image"]
# %%remote
png = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
display(Image(png, width=20, height=20, alt="a dot"))
display(Image(url="https://example.invalid/dot.png"))
Image(png, format="png", unconfined=True)

# %% tags=["image-from-file"]
# %%remote
with open("dot.png", "wb") as file:
    file.write(png)
Image("dot.png")

# %% tags=["image-5-mb"]
# %%remote
import random
Image(b"\x89PNG\r\n\x1a\n" + random.Random(1).randbytes(5_000_000), format="png")

# %% tags=["audio"]
# %%remote
import numpy as np
Audio(np.sin(np.linspace(0, 440, 4000)), rate=8000)

# %% tags=["audio-data"]
# %%remote
display(Audio(data=b"RIFFxxxxWAVE", autoplay=True, embed=True))

# %% tags=["video"]
# %%remote
Video(data=b"not really a film", embed=True, mimetype="video/mp4", width=100)

# %% tags=["frames-and-links"]
# %%remote
display(IFrame("https://example.invalid", width=300, height=200, loading="lazy"))
display(YouTubeVideo("x" * 11))
display(FileLink("dot.png"))

# %% tags=["progress-bar"]
# %%remote
for each in ProgressBar(3):
    time.sleep(0.01)

# %% tags=["several"]
# %%remote
display(1, "two", [3], None)

# %% tags=["include-exclude"]
# %%remote
class Both:
    def _repr_html_(self):
        return "<b>both</b>"
    def _repr_latex_(self):
        return "$both$"
    def __repr__(self):
        return "both"
display(Both(), include=["text/plain", "text/latex"])
display(Both(), exclude=["text/html"])
Both()

# %% tags=["mimebundle"]
# %%remote
class Bundle:
    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"text/plain": "bundle", "application/x-mine+json": {"n": [1, 2]}, "image/png": png}, {
            "image/png": {"width": 3}, "isolated": True
        }
Bundle()

# %% tags=["raw"]
# %%remote
display({"text/plain": "plain", "application/vnd.mine.v1+json": {"deep": {"er": [None, True, 1.5]}}},
        metadata={"mine": {"nested": [1, {"a": None}]}, "isolated": True}, raw=True)
publish_display_data({"text/plain": "published"}, {"k": "v"})

# %% tags=["bytes-in-metadata"]
# %%remote
display({"text/plain": "with bytes", "application/octet-stream": b"\x00\xff"}, raw=True)

# %% tags=["own-display"]
# %%remote
class Own:
    def _ipython_display_(self):
        print("displayed myself")
        display(HTML("<u>own</u>"))
Own()

# %% tags=["broken-repr"]
# %%remote
class Broken:
    def _repr_html_(self):
        raise RuntimeError("cannot be shown")
    def __repr__(self):
        return "still shown"
display(Broken())

# %% tags=["mixed"]
# %%remote
print("a")
display("b")
print("c")
display("d")
print("e", file=__import__("sys").stderr)
"f"

# %% tags=["update"]
# %%remote
h = display("first", display_id=True)
h.update("second")
for i in range(3):
    h.update(HTML(f"<b>{i}</b>"))
type(h).__name__

# %% tags=["update-later"]
# %%remote
display("to be updated later", display_id="later")
print("below it")

# %% tags=["update-from-remote"]
# %%remote
update_display(HTML("<b>updated by the next remote cell</b>"), display_id="later")

# %% tags=["update-made-for-local"]
# %%remote
display("to be updated locally", display_id="local")

# %% tags=["update-from-local"]
from IPython.display import HTML, display, update_display
update_display(HTML("<b>updated by a local cell</b>"), display_id="local")

# %% tags=["local-display"]
display("made by a local cell", display_id="by-local")

# %% tags=["update-local-from-remote"]
# %%remote
update_display("updated by a remote cell", display_id="by-local")

# %% tags=["handle-survives"]
# %%remote
kept = DisplayHandle("kept-handle")
kept.display("shown by its handle")

# %% tags=["handle-later"]
# %%remote
kept.update("updated through the handle of an earlier cell")

# %% tags=["same-id-twice"]
# %%remote
display("one", display_id="twice")
display("two", display_id="twice")
update_display("both", display_id="twice")

# %% tags=["update-metadata"]
# %%remote
display(Image(png), display_id="meta")
update_display(Image(png, width=7), display_id="meta")

# %% tags=["clear"]
# %%remote
print("gone")
display("gone too")
clear_output()
print("kept")

# %% tags=["clear-wait-loop"]
# %%remote
for i in range(5):
    clear_output(wait=True)
    print("step", i)
    display(HTML(f"<b>{i}</b>"))

# %% tags=["clear-wait-last"]
# %%remote
for i in range(3):
    print("frame", i)
    clear_output(wait=True)

# %% tags=["clear-last"]
# %%remote
print("nothing of this stays")
clear_output()

# %% tags=["clear-wait-error"]
# %%remote
print("cleared by the error")
clear_output(wait=True)
1 / 0

# %% tags=["clear-wait-result"]
# %%remote
print("cleared by the result")
clear_output(wait=True)
"the result"

# %% tags=["clear-wait-update"]
# %%remote
u = display("an update clears nothing", display_id=True)
clear_output(wait=True)
u.update("so this stays")

# %% tags=["thread-display"]
# %%remote
def show():
    display(HTML("<b>from a thread</b>"))
    print("and its print")
thread = threading.Thread(target=show)
thread.start()
thread.join()

# %% tags=["thread-update"]
# %%remote
t = display("waiting for a thread", display_id=True)
thread = threading.Thread(target=lambda: t.update("updated by a thread"))
thread.start()
thread.join()

# %% tags=["html-magic"]
# %%remote
# %%html
# <b>by the magic</b>

# %% tags=["javascript-magic"]
# %%remote
# %%javascript
// console.log("by the magic")

# %% tags=["latex-magic"]
# %%remote
# %%latex
# $$x^2$$

# %% tags=["markdown-magic"]
# %%remote
# %%markdown
# * one

# %% tags=["svg-magic"]
# %%remote
# %%svg
# <svg xmlns="http://www.w3.org/2000/svg" width="2" height="2"></svg>

# %% tags=["nested-display-data-in-error"]
# %%remote
display(HTML("<b>shown, then it fails</b>"))
raise RuntimeError("failed after a display")
