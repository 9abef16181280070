"""A real JupyterLab in a real browser.

    Lab(folder, environment)   a JupyterLab server of the test's own: settings, runtime files, token
    Book(page)                 one notebook open in Chromium: cells in, what a reader sees out

Cells get their text through the page's own document model (typing would fight its completer), and
run by the command that Shift+Enter runs. What is read is what the page renders.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import nbformat
import pytest
from playwright.sync_api import Error, Locator, Page, expect

CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"checkForUpdates": False, "fetchNews": "false"},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
}
START_S = 90.0
ROOT = Path(__file__).resolve().parents[2]
EXTENSION = ROOT / "mlcloud" / "labserver" / "labextension"


def chromium() -> str:
    """The browser. Without one, the test is skipped, or fails where browsers are required."""
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        found = shutil.which(name)
        if found:
            return found
    message = (
        "no Chromium to test the page in: install one "
        "(Debian, Ubuntu: apt-get install --no-install-recommends chromium)"
    )
    if os.environ.get("MLCLOUD_REQUIRE_BROWSER") == "1":
        pytest.fail(message)
    pytest.skip(message)


def needs_extension() -> None:
    """Skips where the JupyterLab extension is not built, or fails where it must be."""
    if (EXTENSION / "package.json").exists():
        return
    message = "the JupyterLab extension is not built: install Node, then `make test`"
    if os.environ.get("MLCLOUD_REQUIRE_BROWSER") == "1":
        pytest.fail(message)
    pytest.skip(message)


def with_extension(folder: Path, environment: dict[str, str]) -> dict[str, str]:
    """Jupyter's search paths so that this checkout's extension is the one that is found, as an
    installed one would be."""
    share = folder / "share"
    (share / "labextensions").mkdir(parents=True)
    if (EXTENSION / "package.json").exists():
        (share / "labextensions" / "mlcloud").symlink_to(EXTENSION)
    paths = [str(share), environment.get("JUPYTER_PATH", "")]
    return {
        **environment,
        "JUPYTER_PATH": os.pathsep.join(filter(None, paths)),
        "JUPYTER_CONFIG_PATH": str(ROOT / "labextension" / "jupyter-config"),
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Lab:
    """A JupyterLab server on 127.0.0.1, with its notebooks and all else in `folder`."""

    module = "jupyterlab"
    tree = "lab/tree"
    options: tuple[str, ...] = ("--LabApp.extension_manager=readonly",)
    base = "/"

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder / "notebooks"
        self.folder.mkdir()
        self.token = secrets.token_hex(16)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}{self.base.rstrip('/')}"
        self._log = (folder / "lab.log").open("w+")
        settings = folder / "app-settings"
        settings.mkdir()
        (settings / "overrides.json").write_text(json.dumps(SETTINGS))
        own = {
            "JUPYTER_CONFIG_DIR": folder / "config",
            "JUPYTER_RUNTIME_DIR": folder / "runtime",
            "JUPYTER_DATA_DIR": folder / "data",
            "IPYTHONDIR": folder / "ipython",
        }
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                self.module,
                "--no-browser",
                "--expose-app-in-browser",
                "--allow-root",
                "--ServerApp.ip=127.0.0.1",
                f"--ServerApp.port={port}",
                f"--ServerApp.base_url={self.base}",
                "--ServerApp.port_retries=0",
                f"--ServerApp.root_dir={self.folder}",
                f"--IdentityProvider.token={self.token}",
                f"--LabApp.app_settings_dir={settings}",
                f"--LabApp.user_settings_dir={folder / 'user-settings'}",
                f"--LabApp.workspaces_dir={folder / 'workspaces'}",
                *self.options,
                "--ServerApp.terminals_enabled=False",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=self.folder,
            env={
                **with_extension(folder, environment),
                **{name: str(path) for name, path in own.items()},
            },
            start_new_session=True,
        )
        self.http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"token {self.token}"},
            timeout=30,
            trust_env=False,
        )
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(httpx.TransportError):
                if self.http.get("/api/status").is_success:
                    return
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._log.seek(0)
                pytest.fail(f"{self.module} did not start:\n{self._log.read()[-3000:]}")
            time.sleep(0.1)

    @property
    def pid(self) -> int:
        return self._process.pid

    def end_kernels(self) -> None:
        for session in self.http.get("/api/sessions").json():
            self.http.delete(f"/api/sessions/{session['id']}")

    def close(self) -> None:
        """End the server, its kernels first; each was started by it alone."""
        with contextlib.suppress(httpx.HTTPError):
            self.end_kernels()
        self.http.close()
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(5)
        self._log.close()


class Notebook7(Lab):
    """The same server with Notebook 7's page, which is made of JupyterLab's parts."""

    module = "notebook"
    tree = "notebooks"
    options = ()


class Book:
    """A notebook in the page. Cells are numbered from 0, as in its file."""

    def __init__(
        self,
        lab: Lab,
        page: Page,
        name: str,
        cells: list[str] | None = None,
        kernel: str = "python3",
    ) -> None:
        self.lab = lab
        self.page = page
        self.name = name
        self.path = lab.folder / name
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(source) for source in cells or []],
            metadata={"kernelspec": {"name": kernel, "display_name": kernel}},
        )
        nbformat.write(notebook, self.path)
        self.open()

    def open(self) -> None:
        """Load the page, as a reload does, and wait until its kernel is ready."""
        address = f"{self.lab.url}/{self.lab.tree}/{self.name}?token={self.lab.token}"
        self.page.goto(f"{address}&reset")
        if self.lab.tree == "notebooks":
            self.page.wait_for_function(KERNEL_IDLE, timeout=60_000)
        else:
            # The kernel's state beside its name; the first cell's indicator comes too early.
            status = self.page.locator("#jp-main-statusbar")
            expect(status).to_contain_text("| Idle", timeout=60_000)
        self.page.evaluate(SETTLED)

    reload = open

    # --- cells ------------------------------------------------------------------------------------

    def add(self, source: str) -> int:
        """Append a cell; returns its number."""
        number: int = self.page.evaluate(ADD, source)
        return number

    def start(self, cell: int | str) -> int:
        """Run a cell (or append one and run it), without waiting for its end."""
        number = self.add(cell) if isinstance(cell, str) else cell
        self.page.evaluate(RUN, number)
        return number

    def run(self, cell: int | str, timeout: float = 60.0) -> int:
        """Run a cell and wait until it has ended."""
        number = self.start(cell)
        self.ended(number, timeout)
        return number

    def ok(self, cell: int | str, timeout: float = 60.0) -> int:
        """Run a cell that must not fail."""
        number = self.run(cell, timeout)
        wrong = self.cell(number).locator("[data-mime-type='application/vnd.jupyter.stderr']")
        errors = self.page.evaluate(ERRORS, number)
        assert not errors, f"{errors}\n{wrong.all_inner_texts()}"
        return number

    def ended(self, number: int, timeout: float = 60.0) -> None:
        self.until(lambda: self.prompt(number).isdigit(), f"cell {number} ends", timeout)

    def prompt(self, number: int) -> str:
        """What stands between its brackets: a number, `*`, or nothing."""
        found: str = self.page.evaluate(PROMPT, number)
        return found

    # --- what is seen -----------------------------------------------------------------------------

    def cell(self, number: int) -> Locator:
        self.page.evaluate(SCROLL, number)
        return self.page.locator(f".jp-Notebook .jp-Cell[data-windowed-list-index='{number}']")

    def outputs(self, number: int) -> Locator:
        """Its outputs; those inside a widget are the widget's."""
        return self.cell(number).locator(
            ".jp-Cell-outputArea > .jp-OutputArea-child > .jp-OutputArea-output"
        )

    def text(self, number: int) -> str:
        """All text below the cell, as it is rendered."""
        return "\n".join(self.outputs(number).all_inner_texts())

    def shows(self, number: int, text: str | re.Pattern[str], timeout: float = 30.0) -> str:
        """Wait until the cell's output has `text`; returns all of it."""

        def found() -> bool:
            now = self.text(number)
            return bool(text.search(now)) if isinstance(text, re.Pattern) else text in now

        self.until(found, f"cell {number} shows {text!r}", timeout, lambda: self.text(number))
        return self.text(number)

    def until(
        self,
        condition: Callable[[], bool],
        what: str,
        timeout: float = 30.0,
        otherwise: Callable[[], str] = str,
    ) -> None:
        """Poll while the page goes on living (a plain sleep would stop its events here)."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"not within {timeout:g} s: {what}; instead: {otherwise()[-1500:]!r}")
            self.page.wait_for_timeout(50)

    def drag(self, slider: Locator, fraction: float, *, steps: int = 8) -> None:
        """Drag an ipywidgets slider's handle to this part of its length, as a hand does."""
        slider.scroll_into_view_if_needed()
        handle = slider.locator(".noUi-handle").bounding_box()
        base = slider.locator(".noUi-base").bounding_box()
        assert handle is not None
        assert base is not None
        y = handle["y"] + handle["height"] / 2
        self.page.mouse.move(handle["x"] + handle["width"] / 2, y)
        self.page.mouse.down()
        self.page.mouse.move(base["x"] + fraction * base["width"], y, steps=steps)
        self.page.mouse.up()

    # --- the page itself --------------------------------------------------------------------------

    def command(self, name: str) -> None:
        self.page.evaluate("name => window.jupyterapp.commands.execute(name)", name)

    def save(self) -> Any:
        """Save, and read the file."""
        self.command("docmanager:save")
        return nbformat.read(self.path, as_version=4)

    def interrupt(self) -> None:
        self.command("notebook:interrupt-kernel")

    def theme(self, name: str) -> None:
        self.page.evaluate(
            "name => window.jupyterapp.commands.execute('apputils:change-theme', {theme: name})",
            name,
        )
        expect(self.page.locator("body")).to_have_attribute(
            "data-jp-theme-name", name, timeout=20_000
        )

    def responds_within(self) -> float:
        """How long the page takes to do one small thing and draw it, in seconds."""
        began = time.monotonic()
        with contextlib.suppress(Error):
            self.page.evaluate(FRAME)
        return time.monotonic() - began


NOTEBOOK = "window.jupyterapp.shell.currentWidget.content"
KERNEL_IDLE = """() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel
  ?.status === 'idle'"""
ADD = f"""source => {{
  const cells = {NOTEBOOK}.model.sharedModel;
  cells.insertCell(cells.cells.length, {{cell_type: 'code', source, metadata: {{trusted: true}}}});
  return cells.cells.length - 1;
}}"""
RUN = f"""number => {{
  const notebook = {NOTEBOOK};
  notebook.deselectAll();
  notebook.activeCellIndex = number;
  notebook.widgets[number].promptNode && (notebook.widgets[number].model.executionCount = null);
  window.jupyterapp.commands.execute('notebook:run-cell');
}}"""
PROMPT = f"""number => {{
  const cell = {NOTEBOOK}.widgets[number];
  return cell.model.executionState === 'running' ? '*' : String(cell.model.executionCount ?? '');
}}"""
ERRORS = f"""number => {NOTEBOOK}.widgets[number].model.outputs.toJSON()
  .filter(each => each.output_type === 'error').map(each => each.traceback.join('\\n'))"""
SCROLL = f"""async number => {{ await {NOTEBOOK}.scrollToItem(number, 'smart'); }}"""
SETTLED = """async () => { await window.jupyterapp.shell.currentWidget.context.ready;
  await window.jupyterapp.shell.currentWidget.revealed; }"""
FRAME = "() => new Promise(done => requestAnimationFrame(() => setTimeout(done, 0)))"
