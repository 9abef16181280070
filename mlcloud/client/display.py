"""Showing a remote cell's events in the local cell, as if it had run here.

    stream               the local sys.stdout / sys.stderr, flushed at once
    display_data         published again, same data, metadata, display_id; updates as updates
    execute_result       through IPython's display hook, so it is Out[n]
    clear_output         as it is
    status, story        what the session waits for (one line, replaced), what happened to it (kept)

Works in a notebook and in a terminal's IPython; in plain Python only text appears.
"""

from __future__ import annotations

import html
import sys
import time
from datetime import datetime
from typing import Any
from uuid import uuid4

STYLE = (
    "font-family:var(--jp-ui-font-family,system-ui,sans-serif);"
    "font-size:var(--jp-ui-font-size1,0.9em);color:var(--jp-ui-font-color2,#757575);padding:1px 0"
)
MARKS = {
    "notice": "⚠",
    "lost": "✕",
    "moved": "→",
    "rerun": "↻",
    "restored": "✓",
    "resumed": "▶",
    "checkpoint": "•",
}


def shell() -> Any:
    """The running IPython, or None."""
    get_ipython = sys.modules.get("IPython")
    return get_ipython.get_ipython() if get_ipython is not None else None


class Display:
    """The output of one execution. `result_hook`: whether its value becomes this cell's Out[n]."""

    def __init__(self, *, result_hook: bool = True) -> None:
        self._shell = shell()
        self._result_hook = result_hook
        self._status_id: str | None = None
        self._status_since = time.monotonic()
        self.error: dict[str, Any] | None = None

    def show(self, kind: str, body: dict[str, Any]) -> None:
        method = getattr(self, f"_{kind}", None)
        if method is not None:
            method(body["content"], body)

    # --- Jupyter's messages -----------------------------------------------------------------------

    def _stream(self, content: dict[str, Any], _: Any) -> None:
        stream = sys.stderr if content["name"] == "stderr" else sys.stdout
        stream.write(content["text"])
        stream.flush()

    def _display_data(self, content: dict[str, Any], _: Any, *, update: bool = False) -> None:
        if self._shell is None:
            print(content["data"].get("text/plain", ""))
            return
        self._shell.display_pub.publish(
            content["data"],
            content.get("metadata") or {},
            transient=content.get("transient") or {},
            update=update,
        )

    def _update_display_data(self, content: dict[str, Any], body: Any) -> None:
        self._display_data(content, body, update=True)

    def _execute_result(self, content: dict[str, Any], body: Any) -> None:
        hook = getattr(self._shell, "displayhook", None)
        if hook is None or not self._result_hook:
            self._display_data(content, body)
            return
        hook.start_displayhook()
        hook.write_output_prompt()
        hook.write_format_data(content["data"], content.get("metadata") or {})
        hook.update_user_ns(RemoteOutput(content["data"], content.get("metadata") or {}))
        hook.finish_displayhook()

    def _clear_output(self, content: dict[str, Any], _: Any) -> None:
        if self._shell is not None:
            self._shell.display_pub.clear_output(wait=content.get("wait", False))

    def _error(self, content: dict[str, Any], _: Any) -> None:
        self.error = content

    # --- ours -------------------------------------------------------------------------------------

    def _status(self, content: dict[str, Any], _: Any) -> None:
        self.status(content["text"], ready=content.get("ready", False))

    def status(self, text: str, *, ready: bool = False) -> None:
        """What the session waits for: one line that replaces the last."""
        update = self._status_id is not None
        if self._status_id is None:
            self._status_id = f"mlcloud-{uuid4().hex[:12]}"
            self._status_since = time.monotonic()
        waited = time.monotonic() - self._status_since
        since = f" · {'ready after ' if ready else ''}{waited:.0f} s" if waited >= 1 else ""
        self._line(
            f"{text}{since}",
            mark="●" if ready else "◌",
            transient={"display_id": self._status_id},
            update=update,
        )
        if ready:
            self._status_id = None  # the next wait has a line of its own

    def warn(self, text: str) -> None:
        """Something that might matter. It stays under the cell."""
        self._line(text, mark="⚠", facts={"what": "warning"})

    def _story(self, content: dict[str, Any], body: dict[str, Any]) -> None:
        clock = datetime.fromtimestamp(body["time"]).strftime("%H:%M:%S")
        facts = {key: value for key, value in content.items() if key != "text"}
        self._line(f"{clock} {content['text']}", mark=MARKS.get(content["what"], "·"), facts=facts)

    def _mlcloud_event(self, content: dict[str, Any], body: dict[str, Any]) -> None:
        text = checkpoint_line(content)
        if text:
            self._story({**content, "what": content["type"], "text": text}, body)

    def _line(
        self,
        text: str,
        *,
        mark: str,
        facts: dict[str, Any] | None = None,
        transient: dict[str, Any] | None = None,
        update: bool = False,
    ) -> None:
        data = {
            "text/plain": f"{mark} {text}",
            "text/html": f'<div style="{STYLE}">{mark} {html.escape(text)}</div>',
        }
        metadata = {"mlcloud": {"line": text, **(facts or {})}}
        if self._shell is None:
            print(data["text/plain"], file=sys.stderr)
            return
        self._shell.display_pub.publish(data, metadata, transient=transient or {}, update=update)

    def footer(self, content: dict[str, Any]) -> None:
        """The bill under the cell."""
        if self._shell is None:
            print(content["text"], file=sys.stderr)
            return
        self._shell.display_pub.publish(
            {"text/plain": content["text"], "text/html": content["html"]}, content["metadata"]
        )


class RemoteOutput:
    """What `_` and `Out[n]` hold after a remote cell: its value as it was shown."""

    def __init__(self, data: dict[str, Any], metadata: dict[str, Any]) -> None:
        self.data = data
        self.metadata = metadata

    def __repr__(self) -> str:
        return str(self.data.get("text/plain", "<remote value>"))

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.data, self.metadata


def checkpoint_line(event: dict[str, Any]) -> str | None:
    """A checkpoint event in words; None for those nobody needs to read."""
    from mlcloud.units import format_bytes

    kind = event["type"]
    if kind == "checkpoint" and event["reason"] == "notice":
        return (
            f"checkpoint at step {event['step']} saved on notice "
            f"({format_bytes(event['new_bytes'])} in {event['seconds']:.2f} s)"
        )
    if kind == "resumed":
        return (
            f"resumed at step {event['step']} from its checkpoint ({format_bytes(event['bytes'])})"
        )
    if kind == "checkpoint_failed":
        return f"checkpoint failed, training goes on: {event['message']}"
    if kind == "fell_back":
        return f"checkpoint {event['from']} is damaged ({event['why']}); using {event['to']}"
    return None
