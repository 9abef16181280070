"""One notebook in one process, saved in one way after each cell; or such a state restored.

    run.py run      --way WAY --notebook FILE --folder DIR     cells run, the folder grows
    run.py restore  --way WAY --folder DIR --cell N [--warm]   the state then, in a fresh process

The last line it prints is JSON for `sessions.py`. The shell is IPython's own, with ipykernel's
compiler, as a notebook has it. The ways hook into it as they do in a kernel:

    plain    nothing
    mlcloud  what `mlcloud.kernel.kernel` does after a cell and beside the next one, and the
             gateway's commit, where nothing runs for a moment after each cell
    runall   the same where each cell follows the one before at once, as by "Run All"
    unsaved  only what such a session does to tell the notebook which values are new
    kishu    `init_kishu`, whose hooks run before and after each cell
    dill     `dill.dump_session` of the whole namespace into one more file

Kishu runs in its own test mode: the only difference is that it does not wait for a front end to
save and reload the notebook, seconds which nobody here would see the use of.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import fingerprint

KEY = b"the key of a benchmark's gateway"
SESSION = "benchmark"
_IMPORT = re.compile(r"^(?:import|from) ([\w.]+)", re.MULTILINE)


class Way:
    """Nothing at all, and what the others have in common."""

    def __init__(self, shell: Any, folder: Path) -> None:
        self.shell, self.folder = shell, folder
        self.seconds = 0.0  # in hooks, since the last cell
        self.failed = ""

    def start(self) -> None:
        """Before the first cell."""

    def end(self) -> None:
        """After the last cell."""

    def load(self, cell: int) -> None:
        """The state after that cell, into the empty namespace. This is what is timed."""

    @contextlib.contextmanager
    def counted(self) -> Any:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began


class MLCloud(Way):
    share = 1.0  # each boundary is saved

    def __init__(self, shell: Any, folder: Path) -> None:
        super().__init__(shell, folder)
        from mlcloud.gateway.snapshots import SnapshotLog
        from mlcloud.kernel.namespace import RemoteSide
        from mlcloud.kernel.pace import SHARE, Pace
        from mlcloud.kernel.saving import Saving
        from mlcloud.kernel.snapshot import Snapshots
        from mlcloud.store import Signer, Store

        store = Store(f"file://{folder}")
        self.log = SnapshotLog(store, Signer(KEY))
        self.side = RemoteSide(shell.user_ns)
        self.snapshots = Snapshots(store, self.side)
        self.saving = Saving(2**30)
        self.pace = Pace(self.share or SHARE)
        self.cell = 0
        self.known: dict[str, int] = {}
        self.runs: list[Any] = []

    def start(self) -> None:
        self.shell.events.register("pre_run_cell", self.before)
        self.shell.events.register("post_run_cell", self.after)

    def before(self, info: Any) -> None:
        """A notebook that has what came back so far asks for a cell."""
        from mlcloud.values.messages import Shipment

        with self.counted():
            takes = self.side.cost
            if self.runs and self.pace.affords(takes) and self.saving.wait(self.pace.most - takes):
                began = time.perf_counter()
                self.save()
                self.pace.delayed(time.perf_counter() - began)
            self.saving.detach()
        self.shipment = Shipment(known=dict(self.known), sender="notebook")
        self.side.load(self.shipment)
        self.began = time.perf_counter()

    def after(self, result: Any) -> None:
        from mlcloud.kernel import activity
        from mlcloud.kernel.mentions import mentions, used_by
        from mlcloud.kernel.recipes import CellRun

        seconds = time.perf_counter() - self.began
        self.pace.ran(seconds)
        with self.counted():
            if activity.is_running():
                self.side.doubt()
            code = self.shell.transform_cell(result.info.raw_cell)
            hooks = [hook for hooks in self.shell.events.callbacks.values() for hook in hooks]
            # What came of the cell goes back to the notebook; the snapshot is of the same look.
            mentioned = mentions(code) | used_by(activity.codes_of(hooks))
            self.known |= self.side.collect(self.shipment, mentioned).versions
            run = CellRun(self.cell, f"execution-{self.cell}", result.info.raw_cell, code)
            run.seconds = seconds
            self.runs.append(run)
            self.cell += 1
            if self.share:
                self.save()

    def save(self) -> None:
        """What a kernel does between two cells, where `Pace` lets it, and when nothing runs."""
        from mlcloud.kernel import activity
        from mlcloud.kernel.pace import together

        if activity.is_running():
            self.side.doubt()
        labels = dict(self.shell.compile._filename_map)
        cell, log = self.cell - 1, self.log

        def commit(content: dict[str, Any]) -> None:
            body = {**content["body"], "labels": labels}
            log.commit(SESSION, cell, f"execution-{cell}", body)

        self.saving.wait()
        self.saving.start(self.snapshots.begin(run=together(self.runs)), commit)
        self.runs.clear()

    def end(self) -> None:
        with self.counted():
            if self.runs:
                self.save()
            self.saving.wait()

    def load(self, cell: int) -> None:
        found = self.log.latest(SESSION, before=cell + 1)
        assert found is not None
        assert not found[2], found[2]
        self.loaded = found[0]
        restoring = self.snapshots.restore(found[1])
        for run in restoring.cells():
            result = self.shell.run_cell(run.code, store_history=False, silent=True)
            restoring.failed(run.step, result.error_before_exec or result.error_in_exec)
        self.failed = str(restoring.end()["missing"] or "")


class RunAll(MLCloud):
    share = 0.0  # as a session has it


class Unsaved(MLCloud):
    share = 0.0

    def save(self) -> None:
        self.runs.clear()


class Kishu(Way):
    def __init__(self, shell: Any, folder: Path) -> None:
        os.environ["KISHU_PATH_ROOT"] = str(folder.parent)
        os.environ["ENV_KISHU_TEST_MODE"] = "true"
        os.environ["TEST_NOTEBOOK_PATH"] = str(folder / "notebook.ipynb")
        super().__init__(shell, folder)
        import kishu

        self.kishu = kishu
        if not (folder / "notebook.ipynb").exists():
            import nbformat
            from nbformat.v4 import new_code_cell, new_notebook

            sources = (folder / "cells.json").read_text()
            notebook = new_notebook(cells=[new_code_cell(each) for each in json.loads(sources)])
            nbformat.write(notebook, folder / "notebook.ipynb")
        self.shell.run_cell("from kishu import init_kishu\ninit_kishu()", store_history=False)
        self.hooks = self.shell.user_ns["_kishu"]

    def start(self) -> None:
        for event in ("pre_run_cell", "post_run_cell"):
            hook = getattr(self.hooks, event)
            self.shell.events.unregister(event, hook)
            self.shell.events.register(event, self._timed(hook))

    def _timed(self, hook: Any) -> Any:
        def timed(what: Any) -> None:
            with self.counted():
                hook(what)

        return timed

    def load(self, cell: int) -> None:
        # Each commit has the cell's execution count as its number.
        self.hooks.checkout(f"1:0:{cell + 1}", skip_notebook=True)


class Dill(Way):
    def __init__(self, shell: Any, folder: Path) -> None:
        super().__init__(shell, folder)
        import dill

        self.dill = dill
        self.cell = 0

    def start(self) -> None:
        self.shell.events.register("post_run_cell", self.after)

    def after(self, result: Any) -> None:
        with self.counted():
            try:
                self.dill.dump_session(self._file(self.cell), main=self.shell.user_module)
            except Exception as error:
                self.failed = f"{type(error).__name__}: {error}"[:200]
                self._file(self.cell).unlink(missing_ok=True)
            self.cell += 1

    def load(self, cell: int) -> None:
        self.dill.load_session(self._file(cell), main=self.shell.user_module)

    def _file(self, cell: int) -> Path:
        return self.folder / f"{cell}.dill"


WAYS: dict[str, type[Way]] = {
    "plain": Way,
    "mlcloud": MLCloud,
    "runall": RunAll,
    "unsaved": Unsaved,
    "kishu": Kishu,
    "dill": Dill,
}


def new_shell() -> Any:
    from ipykernel.compiler import XCachingCompiler
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    config = Config()
    config.HistoryManager.enabled = False
    return InteractiveShell.instance(config=config, compiler_class=XCachingCompiler)


def draw_inline(shell: Any, code: str) -> None:
    """As in a notebook: figures are shown, and closed, when their cell ends."""
    if "matplotlib" in code:
        from matplotlib_inline.backend_inline import flush_figures

        shell.events.register("post_execute", flush_figures)


def bytes_in(folder: Path) -> int:
    """Of what a way has written. The notebook itself is the user's."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # one that was on its way to its name
            if path.name not in NOT_WRITTEN and path.is_file():
                total += path.stat().st_size
    return total


NOT_WRITTEN = {"notebook.ipynb", "cells.json", "config.ini"}


def run(options: argparse.Namespace) -> dict[str, Any]:
    text = options.notebook.read_text()
    cells = [cell.strip() for cell in text.split("# %%\n")[1:]]
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "cells.json").write_text(json.dumps(cells))
    shell = new_shell()
    draw_inline(shell, text)
    way = WAYS[options.way](shell, options.folder)
    for module in modules_of(text):
        importlib.import_module(module)  # so that no way's first cell has to
    before = bytes_in(options.folder)
    way.start()
    states = sorted({len(cells) * part // 4 - 1 for part in (1, 2, 3, 4)})
    found: dict[str, Any] = {"seconds": [], "hooks": [], "bytes": [], "failed": {}, "prints": {}}
    os.chdir(options.folder.parent)
    for number, cell in enumerate(cells):
        way.seconds, way.failed = 0.0, ""
        with contextlib.redirect_stdout(io.StringIO()):
            began = time.perf_counter()
            result = shell.run_cell(cell, store_history=True)
            found["seconds"].append(time.perf_counter() - began)
        if result.error_in_exec or result.error_before_exec:
            raise SystemExit(f"cell {number} of {options.notebook} fails: {cell}")
        if way.failed:
            found["failed"][number] = way.failed
        found["hooks"].append(way.seconds)
        size = bytes_in(options.folder)
        found["bytes"].append(size - before)
        before = size
        if number == len(cells) - 1:
            way.seconds = 0.0
            way.end()
            found["last"] = way.seconds  # until all of it is saved: nobody waits for that
            found["bytes"][-1] += bytes_in(options.folder) - before
        if number in states:
            found["prints"][number] = fingerprint.of(shell.user_ns)
    if isinstance(way, MLCloud):
        found["parts"] = parts(options.folder)
    return found


def parts(folder: Path) -> dict[str, Any]:
    """Where this way's bytes are."""
    manifests = [path.stat().st_size for path in (folder / "manifests").rglob("*.json")]
    chunks = [path.stat().st_size for path in (folder / "chunks").rglob("*") if path.is_file()]
    small = [size for size in chunks if size < 65536]
    return {
        "states": len(manifests),
        "manifest bytes": sum(manifests),
        "chunks": len(chunks),
        "small chunks": len(small),
        "small chunks bytes": sum(small),
        "large chunks bytes": sum(chunks) - sum(small),
    }


def modules_of(text: str) -> list[str]:
    return sorted(set(_IMPORT.findall(text)))


def restore(options: argparse.Namespace) -> dict[str, Any]:
    shell = new_shell()
    began = time.perf_counter()
    way = WAYS[options.way](shell, options.folder)
    tool = time.perf_counter() - began
    cells = "\n".join(json.loads((options.folder / "cells.json").read_text()))
    draw_inline(shell, cells)
    began = time.perf_counter()
    if options.warm:
        for module in modules_of(cells):
            importlib.import_module(module)
    libraries = time.perf_counter() - began
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        way.load(options.cell)
    seconds = time.perf_counter() - began
    prints = fingerprint.of(shell.user_ns) if options.check else {}
    return {
        "tool": tool,
        "libraries": libraries,
        "seconds": seconds,
        "prints": prints,
        "failed": way.failed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["run", "restore"])
    parser.add_argument("--way", choices=WAYS, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--notebook", type=Path)
    parser.add_argument("--cell", type=int)
    parser.add_argument("--warm", action="store_true", help="the notebook's libraries are loaded")
    parser.add_argument("--check", action="store_true", help="say what the namespace holds")
    options = parser.parse_args()
    options.folder = options.folder.resolve()
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    answer = run(options) if options.what == "run" else restore(options)
    print("\n" + json.dumps(answer))


if __name__ == "__main__":
    main()
