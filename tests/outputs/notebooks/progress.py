# ---
# jupyter:
#   jupytext:
#     formats: py:percent
# ---

# %% [markdown]
# Progress bars and rich text.

# %% tags=["tqdm"]
# %%remote
from tqdm import tqdm, trange

FORMAT = "{l_bar}{bar:20}| {n_fmt}/{total_fmt}{postfix}"
for i in tqdm(range(5), mininterval=0, desc="console"):
    pass

# %% tags=["tqdm-stdout"]
# %%remote
import sys

for i in trange(3, mininterval=0, file=sys.stdout, bar_format=FORMAT):
    pass

# %% tags=["tqdm-nested"]
# %%remote
for i in trange(2, desc="outer", mininterval=0, bar_format=FORMAT):
    for j in trange(2, desc="inner", leave=False, mininterval=0, bar_format=FORMAT):
        pass

# %% tags=["tqdm-write"]
# %%remote
for i in trange(2, mininterval=0, bar_format=FORMAT):
    tqdm.write(f"line {i}")

# %% tags=["tqdm-postfix"]
# %%remote
bar = tqdm(total=3, mininterval=0, bar_format=FORMAT)
for i in range(3):
    bar.set_postfix(loss=i / 2)
    bar.update()
bar.close()

# %% tags=["tqdm-auto"]
# %%remote
from tqdm.auto import tqdm as auto_tqdm

for i in auto_tqdm(range(3), desc="auto"):
    pass

# %% tags=["tqdm-notebook"]
# %%remote
from tqdm.notebook import tqdm as notebook_tqdm

for i in notebook_tqdm(range(3), desc="notebook", mininterval=0):
    pass

# %% tags=["tqdm-notebook-error"]
# %%remote
for i in notebook_tqdm(range(3), desc="fails"):
    if i == 1:
        raise ValueError("half way")

# %% tags=["widget"]
# %%remote
import ipywidgets

slider = ipywidgets.IntSlider(3, description="made remotely")
slider

# %% tags=["widget-later"]
# %%remote
slider.value = 7

# %% tags=["widget-box"]
# %%remote
ipywidgets.HBox([ipywidgets.Text("t"), ipywidgets.Image(value=b"\x89PNG", format="png")])

# %% tags=["widget-output"]
# %%remote
out = ipywidgets.Output()
display(out)
with out:
    print("captured")
    display("and displayed")
print("not captured")


# %% tags=["widget-output-decorated"]
# %%remote
@out.capture(clear_output=True)
def report():
    print("captured by a decorator")


report()

# %% tags=["widget-closed"]
# %%remote
slider.close()


# %% tags=["interact"]
# %%remote
@ipywidgets.interact(n=(0, 5))
def show(n=2):
    print("n is", n)


# %% tags=["rich-print"]
# %%remote
import rich

rich.print("[bold red]red[/] and [green]green[/] :fox_face:", {"a": [1, 2]})

# %% tags=["rich-pretty"]
# %%remote
from rich.pretty import pprint

pprint({"numbers": list(range(5))})

# %% tags=["rich-console"]
# %%remote
from rich.console import Console

console = Console()
console.print("a [bold]console[/]", style="blue")
console.rule("rule")

# %% tags=["rich-table"]
# %%remote
from rich.table import Table

table = Table(title="Metrics")
table.add_column("epoch")
table.add_column("loss", justify="right", style="cyan")
table.add_row("1", "0.5")
table.add_row("2", "0.25")
console.print(table)

# %% tags=["rich-table-result"]
# %%remote
table

# %% tags=["rich-panel"]
# %%remote
from rich.markdown import Markdown
from rich.panel import Panel
from rich.syntax import Syntax
from rich.tree import Tree

tree = Tree("root")
tree.add("leaf")
rich.print(Panel("inside"), Markdown("# head\n* one"), Syntax("x = 1", "python"), tree)

# %% tags=["rich-progress"]
# %%remote
from rich.progress import BarColumn, Progress, TextColumn

with Progress(
    TextColumn("{task.description}"),
    BarColumn(),
    TextColumn("{task.completed}"),
    auto_refresh=False,
) as progress:
    task = progress.add_task("working", total=3)
    for _i in range(3):
        progress.update(task, advance=1, refresh=True)

# %% tags=["rich-track"]
# %%remote
from rich.progress import track

for _i in track(range(3), description="tracking", auto_refresh=False):
    pass

# %% tags=["rich-live"]
# %%remote
from rich.live import Live

with Live("start", auto_refresh=False) as live:
    for i in range(3):
        live.update(f"live {i}", refresh=True)

# %% tags=["rich-status"]
# %%remote
with console.status("working"):
    console.print("in a status")

# %% tags=["rich-log-handler"]
# %%remote
import logging

from rich.logging import RichHandler

log = logging.getLogger("rich-one")
log.handlers = [RichHandler(show_time=False, show_path=False)]
log.propagate = False
log.warning("by rich")
