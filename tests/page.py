"""A front end of a notebook, as JupyterLab is one: a real kernel, spoken to by messages.

    with open_page(cluster) as page:
        cell = page.run("%%remote\ninput('name? ')", answers=["Ada"])
        running = page.start("%%remote …")         goes on while the test does something
        page.comm(model_id, {"value": 50})         what a slider in the page sends

Where nbclient keeps to the messages of the cell that runs, this keeps all, by the request they
belong to.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from tests.live import Cell, Embedded

OUTPUTS = ("stream", "display_data", "update_display_data", "execute_result", "error")


class Running:
    """A request to the kernel, and what came of it so far."""

    def __init__(self, page: Page, msg_id: str) -> None:
        self._page = page
        self.msg_id = msg_id

    @property
    def messages(self) -> list[dict[str, Any]]:
        """Every iopub message that belongs to it, in order."""
        self._page.read()
        return [m for m in self._page.messages if m["parent_header"].get("msg_id") == self.msg_id]

    @property
    def outputs(self) -> Cell:
        """What the cell shows; updates and clears are kept as messages only."""
        found = []
        for message in self.messages:
            kind = message["header"]["msg_type"]
            if kind in OUTPUTS and kind != "update_display_data":
                found.append({"output_type": kind, "metadata": {}, **message["content"]})
        return Cell(found)

    def of(self, *kinds: str) -> list[dict[str, Any]]:
        """Its messages of these types."""
        return [m for m in self.messages if m["header"]["msg_type"] in kinds]

    @property
    def ended(self) -> bool:
        self._page.read()
        return self.msg_id in self._page.replies

    def until(self, condition: Callable[[Running], Any], what: str, timeout: float = 60.0) -> Any:
        """The condition's first true value."""
        return self._page.until(lambda: condition(self), what, timeout)

    def printed(self, text: str, timeout: float = 60.0) -> None:
        self.until(lambda run: text in run.outputs.stream(), f"{text!r} is printed", timeout)

    def end(self, timeout: float = 200.0) -> Cell:
        """Wait for its reply and all its output."""
        self.until(lambda run: run.ended and run._is_idle(), "the cell ends", timeout)
        return self.outputs

    def _is_idle(self) -> bool:
        return any(m["content"]["execution_state"] == "idle" for m in self.of("status"))


class Page:
    """One notebook page. `messages` are all of iopub so far."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self.manager = manager
        self.client = client
        self.messages: list[dict[str, Any]] = []
        self.replies: dict[str, dict[str, Any]] = {}
        self.asked: list[dict[str, Any]] = []
        self.answers: list[str | Callable[[], None]] = []
        self.wait_s = 0.02

    def run(self, code: str, *, answers: list[str] | None = None, timeout: float = 200.0) -> Cell:
        """Run a cell to its end; `answers` are typed into its prompts, in order."""
        return self.start(code, answers=answers).end(timeout)

    def ok(self, code: str, **options: Any) -> Cell:
        """Run a cell that must not fail."""
        cell = self.run(code, **options)
        assert cell.error is None, "\n".join(cell.error["traceback"])
        return cell

    def start(self, code: str, *, answers: list[str] | None = None) -> Running:
        """Begin a cell."""
        self.answers = list(answers or [])
        allow = answers is not None
        return Running(self, self.client.execute(code, allow_stdin=allow, stop_on_error=False))

    def request(
        self,
        msg_type: str,
        content: dict[str, Any],
        *,
        metadata: dict[str, Any] | None = None,
        buffers: list[bytes] | None = None,
        **header: Any,
    ) -> Running:
        """Send any message on the shell channel."""
        message = self.client.session.msg(msg_type, content, metadata=metadata)
        message["header"].update(header)
        channel = self.client.shell_channel
        self.client.session.send(channel.socket, message, buffers=buffers)
        return Running(self, message["header"]["msg_id"])

    def request_on_control(self, msg_type: str, content: dict[str, Any]) -> dict[str, Any] | None:
        """The reply's content, None where the kernel knows no such request."""
        message = self.client.session.msg(msg_type, content)
        self.client.control_channel.send(message)
        try:
            reply = self.client.get_control_msg(timeout=10)
        except queue.Empty:
            return None
        answer: dict[str, Any] = reply["content"]
        return answer

    def comm(self, comm_id: str, state: dict[str, Any], **header: Any) -> Running:
        """What the page sends when the user moves a widget."""
        data = {"method": "update", "state": state, "buffer_paths": []}
        return self.request("comm_msg", {"comm_id": comm_id, "data": data}, **header)

    def interrupt(self) -> None:
        """The stop button."""
        provisioner: Any = self.manager.provisioner
        os.kill(provisioner.pid, signal.SIGINT)

    def read(self) -> None:
        """Take what has come, and answer what is asked."""
        with contextlib.suppress(queue.Empty):
            while True:
                self.messages.append(self.client.get_iopub_msg(timeout=0))
        with contextlib.suppress(queue.Empty):
            while True:
                reply = self.client.get_shell_msg(timeout=0)
                self.replies[reply["parent_header"]["msg_id"]] = reply
        with contextlib.suppress(queue.Empty):
            while True:
                question = self.client.get_stdin_msg(timeout=0)
                self.asked.append(question["content"])
                if self.answers:
                    answer = self.answers.pop(0)
                    if isinstance(answer, str):
                        self.client.input(answer)
                    else:
                        answer()

    def until(self, condition: Callable[[], Any], what: str, timeout: float = 60.0) -> Any:
        deadline = time.monotonic() + timeout
        while True:
            self.read()
            value = condition()
            if value:
                return value
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {timeout:g} s: {what}")
            time.sleep(self.wait_s)


@contextmanager
def open_page(
    embedded: Embedded, *, load: bool = True, python: str | None = None
) -> Iterator[Page]:
    """A fresh kernel and a front end; `python` is another interpreter for the kernel."""
    manager = KernelManager(kernel_name="python3")
    if python is not None:
        assert manager.kernel_spec is not None
        manager.kernel_spec.argv = [
            *(python, "-m", "ipykernel_launcher", "-f", "{connection_file}"),
        ]
    manager.start_kernel(env=embedded.environment, cwd=str(embedded.home))
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        page = Page(manager, client)
        if load:
            page.ok("%load_ext mlcloud")
        yield page
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
