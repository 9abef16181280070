"""`make demo`: run the first tutorial in a real kernel, and tell what happens while it happens.

    01_first_remote_cell.ipynb ─► a kernel ─► messages ─► lines on the terminal      (Narrator)
                                                 └──────► outputs ─► what_happened() ─► checks
                                                              └────► .demo/*.ipynb, *.html

The cluster lives in a home of its own, `.demo/home`: nobody else's is touched. It is taken down
first, in case an earlier run was killed, and at the end however that end comes; then this looks
whether any of its processes is left. Exit code 0 means that the notebook shows all it promises.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import nbformat
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert import HTMLExporter

from mlcloud.client.embedded import down
from mlcloud.config import Settings
from mlcloud.errors import MLCloudError

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks" / "01_first_remote_cell.ipynb"
CELL_TIMEOUT_S = 240
PROGRESS_EVERY_S = 3.0
GOOD_ACCURACY = 0.9

Say = Callable[[str], None]


class DemoFailed(Exception):
    """The notebook could not be run, or does not show what it promises."""


@dataclass
class Story:
    """What the executed notebook shows, read from its outputs."""

    notebook: Path
    html: Path
    seconds: float = 0.0
    notice: str | None = None
    moved: str | None = None
    resumed_step: int = 0
    accuracy: float = 0.0
    footer: str | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    spent: str | None = None
    pictures: int = 0
    left_running: list[str] = field(default_factory=list)

    def checks(self) -> list[tuple[str, bool]]:
        return [
            ("the notice is shown", self.notice is not None),
            ("the move is shown", self.moved is not None and self.figures.get("moves", 0) >= 1),
            (f"training resumed at epoch {self.resumed_step}, not at 0", self.resumed_step > 0),
            ("the footer with the cost is shown", self.footer is not None),
            ("4 figures are drawn", self.pictures == 4),
            (f"accuracy above {GOOD_ACCURACY}", self.accuracy > GOOD_ACCURACY),
            ("nothing is left running", not self.left_running),
        ]


# --- telling --------------------------------------------------------------------------------------


class Narrator:
    """Turns a kernel's messages into lines with the time in front, at a readable rate."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._began = time.monotonic()
        self._waiting = ""
        self._last_progress = 0.0
        self._last_text = ""

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def line(self, text: str) -> None:
        self._say(f"{self.seconds:6.1f} s  {text}")

    def message(self, message: dict[str, Any]) -> None:
        content = message["content"]
        kind = message["msg_type"]
        if kind == "stream":
            for text in re.split(r"[\r\n]+", content["text"]):
                self._stream(text.strip())
        elif kind in ("display_data", "update_display_data", "execute_result"):
            self._shown(content)

    def _stream(self, text: str) -> None:
        if found := re.search(r"\b(\d+)/(\d+)\b", text):  # a progress bar redraws all the time
            now = time.monotonic()
            if now - self._last_progress < PROGRESS_EVERY_S and found[1] != found[2]:
                return
            self._last_progress = now
        if text and text != self._last_text:
            self._last_text = text
            self.line(f"    {text}")

    def _shown(self, content: dict[str, Any]) -> None:
        facts = content.get("metadata", {}).get("mlcloud", {})
        text = content["data"].get("text/plain", "")
        if "line" in facts and text.startswith("◌"):
            # One waiting line is updated with the seconds it has lasted.
            waiting = text.split(" · ")[0]
            if waiting == self._waiting:
                return
            self._waiting = waiting
            self.line(f"    {waiting}")
        elif "image/png" in content["data"]:
            self.line("    a figure")
        elif facts:
            self.line(f"    {text}")
        else:
            for each in text.splitlines():
                self.line(f"    {each}")


class WatchedClient(NotebookClient):
    """nbclient that shows each message to a narrator before it becomes an output."""

    narrator: Narrator

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        self.narrator.message(msg)
        return super().process_message(msg, cell, cell_index)


# --- running --------------------------------------------------------------------------------------


async def _execute(notebook: Any, out: Path, log: Any, narrator: Narrator) -> None:
    """Run the code cells in order in one kernel. Ctrl-C and SIGTERM cancel this."""
    client = WatchedClient(
        notebook,
        kernel_name="python3",
        timeout=CELL_TIMEOUT_S,
        resources={"metadata": {"path": str(out)}},
    )
    client.narrator = narrator
    code = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    narrator.line("starting a kernel")
    async with client.async_setup_kernel(env=_environment(out), stdout=log, stderr=log):
        stopped = _cancel_on_signals()
        for number, index in enumerate(code, 1):
            cell = notebook.cells[index]
            narrator.line(f"[{number:2}/{len(code)}] {_title(cell)}")
            try:
                await client.async_execute_cell(cell, index, execution_count=number)
            except DeadKernelError:  # which is also what nbclient makes of a cancelled task
                if stopped.is_set():
                    raise DemoFailed("interrupted") from None
                raise
        client.set_widgets_metadata()


def _cancel_on_signals() -> asyncio.Event:
    """Ctrl-C and SIGTERM cancel this task, once; instead of nbclient's own handlers, which would
    leave the cell waiting for its kernel."""
    task = asyncio.current_task()
    assert task is not None
    stopped = asyncio.Event()

    def stop() -> None:
        if not stopped.is_set():
            stopped.set()
            task.cancel()

    loop = asyncio.get_running_loop()
    with contextlib.suppress(RuntimeError, ValueError):  # not in the main thread: no signals here
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
    return stopped


def _environment(out: Path) -> dict[str, str]:
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
    kept = {k: v for k, v in os.environ.items() if k not in ("MLCLOUD_URL", "MLCLOUD_STORE")}
    return {**kept, "PYTHONPATH": path, "MLCLOUD_HOME": str(out / "home")}


def _title(cell: Any) -> str:
    tag = cell.metadata.get("tags", ["cell"])[0]
    where = "remote" if cell.source.startswith("%%remote") else "here"
    return f"{tag} ({where})"


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Two demos at once would take down each other's cluster."""
    with open(out / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoFailed(f"another demo is running in {out}; wait for its end") from None
        yield


def run(out: Path, say: Say = print) -> Story:
    """Execute the tutorial; write it and an HTML copy to `out`; leave nothing running.

    Raises `DemoFailed` when a cell fails, with its error. Whether the notebook shows what it should
    is in the returned story's `checks()`.
    """
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    story = Story(out / NOTEBOOK.name, out / NOTEBOOK.with_suffix(".html").name)
    settings = Settings(home=out / "home", url=None, token=None, store=None)
    with _alone(out):
        if _take_down(settings, say):
            say("an earlier run was cut off; what it left has been taken down")
        shutil.rmtree(settings.home, ignore_errors=True)
        settings.home.mkdir(mode=0o700)
        narrator = Narrator(say)
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        try:
            with open(out / "kernel.log", "wb") as log:
                asyncio.run(_execute(notebook, out, log, narrator))
        except CellExecutionError as error:
            raise DemoFailed(_error(notebook, error)) from None
        except DeadKernelError as error:
            raise DemoFailed(f"the notebook's kernel died: {error}") from None
        except (asyncio.CancelledError, KeyboardInterrupt):
            raise DemoFailed("interrupted") from None
        finally:
            narrator.line("taking the cluster down")
            with _uninterrupted():
                ours = list(_processes(settings.home))
                _take_down(settings, say)
                _write(notebook, story)
                story.left_running = _left(ours, settings.home)
    story.seconds = narrator.seconds
    _what_happened(notebook, story)
    return story


def _error(notebook: Any, error: CellExecutionError) -> str:
    """Which cell failed, and the traceback it shows."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                traceback = "\n".join(output.traceback)
                if not sys.stderr.isatty():
                    traceback = re.sub(r"\x1b\[[\d;]*m", "", traceback)
                return f"cell {_title(cell)}: {error.ename}: {error.evalue}\n{traceback}"
    return str(error)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """A second, impatient Ctrl-C must not stop the clearing up."""
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _take_down(settings: Settings, say: Say) -> bool:
    """`down`, by force where it fails; True if there was anything to end."""
    try:
        return down(settings)
    except (MLCloudError, httpx.HTTPError) as error:
        say(f"`mlcloud down` failed ({error}); ending the processes of {settings.home} one by one")
        for process in _processes(settings.home):
            with contextlib.suppress(psutil.Error):
                process.kill()
        down(settings)
        return True


def _left(ours: list[psutil.Process], home: Path) -> list[str]:
    """What is left of these and of any newer ones, given a few seconds to end and be reaped."""
    until = time.monotonic() + 8
    while True:
        # is_running() is also true of a zombie, as it should be here.
        left = {each for each in [*ours, *_processes(home)] if each.is_running()}
        if not left or time.monotonic() > until:
            return [str(each) for each in left]
        time.sleep(0.1)


def _processes(home: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get("MLCLOUD_HOME") == str(home):
                yield process


# --- the executed notebook ------------------------------------------------------------------------


def _write(notebook: Any, story: Story) -> None:
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = _merged(cell.outputs)
    nbformat.write(notebook, story.notebook)
    page, _ = HTMLExporter(template_name="lab").from_notebook_node(notebook)
    story.html.write_text(page)


def _merged(outputs: list[Any]) -> list[Any]:
    """Consecutive pieces of one stream as one output, redrawn lines only as they were last."""
    merged: list[Any] = []
    for output in outputs:
        last = merged[-1] if merged else None
        if output.output_type == "stream" and last and last.get("name") == output.name:
            last.text += output.text
        else:
            merged.append(output)
    for output in merged:
        if output.output_type == "stream":
            output.text = re.sub(r"[^\n]*\r(?=[^\n\r])", "", output.text)
    return merged


def _what_happened(notebook: Any, story: Story) -> None:
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        for output in cell.get("outputs", []):
            text = output.get("text") or output.get("data", {}).get("text/plain", "")
            facts = output.get("metadata", {}).get("mlcloud", {})
            story.pictures += "image/png" in output.get("data", {})
            if "train" in tags and "line" in facts:
                _read_line(text, story)
            elif "train" in tags and "usd" in facts:
                story.footer, story.figures = text, dict(facts)
            elif "evaluate" in tags and (found := re.search(r"accuracy: ([\d.]+)", text)):
                story.accuracy = float(found[1])
            elif "cost" in tags:
                story.spent = story.spent or text.splitlines()[0]


def _read_line(text: str, story: Story) -> None:
    if text.startswith("⚠"):
        story.notice = text
    elif text.startswith("→"):
        story.moved = text
    elif found := re.search(r"resumed at step (\d+)", text):
        story.resumed_step = int(found[1])


# --- the command ----------------------------------------------------------------------------------


def _summary(story: Story) -> Iterator[str]:
    rows = [
        ("test accuracy", f"{story.accuracy:.1%} of held-out digits"),
        ("training cell", story.footer or "no footer"),
        ("whole notebook", story.spent or "no cost shown"),
        ("demo", f"{story.seconds:.0f} s, cluster taken down again"),
        ("resumed", f"at epoch {story.resumed_step} of 60, on another node"),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        yield f"  {name.ljust(width)}  {value}"
    yield ""
    for name, passed in story.checks():
        yield f"  {'✓' if passed else '✗'} {name}"
    for process in story.left_running:
        yield f"    still running: {process}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the first tutorial, and tell what happens.")
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / ".demo",
        help="where the results and the cluster's home go (.demo)",
    )
    out = parser.parse_args().out
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # progress through pipes
    print(f"mlcloud demo: {NOTEBOOK.relative_to(ROOT)}, on a cluster of its own on this computer")
    try:
        story = run(out)
    except DemoFailed as error:
        print(f"\nthe demo did not get to its end: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted before or after the notebook ran", file=sys.stderr)
        return 130
    print("", *_summary(story), sep="\n")
    jupyter = Path(sys.executable).with_name("jupyter")
    with contextlib.suppress(ValueError):
        jupyter = jupyter.relative_to(Path.cwd())
    print(
        f"\n  executed notebook  {story.notebook}\n    open it with     {jupyter} lab "
        f"{story.notebook}\n  as a web page      {story.html}"
    )
    return 0 if all(passed for _, passed in story.checks()) else 1


if __name__ == "__main__":
    sys.exit(main())
