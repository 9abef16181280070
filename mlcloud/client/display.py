"""Showing a remote cell's events in the local cell, as if it had run here.

    stream               the local sys.stdout / sys.stderr, flushed at once
    display_data         published again, same data, metadata, display_id; updates as updates
    execute_result       through IPython's display hook, so it is Out[n]
    clear_output         as it is; what happened to the session is shown again
    status, story        what the session waits for (one line, replaced), what happened to it (kept)

`Here` shows in the cell that runs now, through IPython; `Under` in a cell that has ended, or goes
on in the background, by messages of its own. Works in a notebook and in a terminal's IPython; in
plain Python only text appears.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn, Protocol
from uuid import uuid4

from mlcloud.client import frontend
from mlcloud.client.frontend import Cell
from mlcloud.widgets.tables import escaped

STYLE = (
    "font-family:var(--jp-ui-font-family,system-ui,sans-serif);"
    "font-size:var(--jp-ui-font-size1,0.9em);color:var(--jp-ui-font-color2,#757575);padding:1px 0"
)
MARKS = {
    "notice": "⚠",
    "risk": "⚠",
    "lost": "✕",
    "moved": "→",
    "rerun": "↻",
    "restored": "✓",
    "rebuilt": "↻",
    "not_restored": "✕",
    "resumed": "▶",
    "checkpoint": "•",
}
PLENTY = 256_000  # characters printed, after which
PIECE_S = 0.25  # more is shown in pieces, that far apart, and the farther the more there is
OUTPUT = {
    *("stream", "display_data", "update_display_data", "execute_result", "clear_output", "error"),
}


class Sink(Protocol):
    """Where output goes."""

    def stream(self, name: str, text: str) -> None: ...

    def display(
        self,
        data: dict[str, Any],
        metadata: dict[str, Any],
        transient: dict[str, Any],
        *,
        update: bool = False,
    ) -> None: ...

    def result(self, data: dict[str, Any], metadata: dict[str, Any]) -> None: ...

    def value(self, value: Any) -> None: ...

    def clear(self, *, wait: bool) -> None: ...

    def error(self, content: dict[str, Any]) -> None: ...


class Here:
    """The cell that runs now. `result_hook`: whether a value becomes its Out[n]."""

    def __init__(self, *, result_hook: bool = True) -> None:
        self._shell = frontend.shell()
        self._result_hook = result_hook
        self._output: RemoteOutput | None = None

    def stream(self, name: str, text: str) -> None:
        frontend.write(sys.stderr if name == "stderr" else sys.stdout, text)

    def display(
        self,
        data: dict[str, Any],
        metadata: dict[str, Any],
        transient: dict[str, Any],
        *,
        update: bool = False,
    ) -> None:
        if self._shell is None:
            ours = "mlcloud" in metadata
            print(data.get("text/plain", ""), file=sys.stderr if ours else sys.stdout)
            return
        self._shell.display_pub.publish(data, metadata, transient=transient, update=update)

    def result(self, data: dict[str, Any], metadata: dict[str, Any]) -> None:
        hook = getattr(self._shell, "displayhook", None)
        if hook is None or not self._result_hook:
            self.display(data, metadata, {})
            return
        self._output = RemoteOutput(data, metadata)
        hook.start_displayhook()
        hook.write_output_prompt()
        hook.write_format_data(data, metadata)
        hook.update_user_ns(self._output)
        hook.log_output(data)
        hook.finish_displayhook()

    def value(self, value: Any) -> None:
        """The result itself has come: it takes the place of what was shown of it."""
        shown, self._output = self._output, None
        if shown is None:
            return
        hook, names = self._shell.displayhook, self._shell.user_ns
        if hook._ is shown:
            hook._ = value
        count = hook.prompt_count
        if names["_oh"].get(count) is shown:
            names["_oh"][count] = value
        # Pushed as IPython does: it gives `_` up where it finds another value than it put there.
        ours = {key: value for key in ("_", f"_{count}") if names.get(key) is shown}
        self._shell.push(ours, interactive=False)
        hook.fill_exec_result(value)

    def clear(self, *, wait: bool) -> None:
        if self._shell is not None:
            self._shell.display_pub.clear_output(wait=wait)

    def error(self, content: dict[str, Any]) -> None:
        """One that did not end the cell, which else raises it (`Session.error_of`)."""
        if self._shell is None:
            lines = content.get("traceback") or [content.get("ename", "error")]
            print("\n".join(lines), file=sys.stderr)
            return
        kind = type(content["ename"], (Exception,), {})
        lines = content.get("traceback") or [content["ename"]]
        self._shell._showtraceback(kind, content["evalue"], lines)


class Under:
    """A cell that has ended, or runs in the background. `publish` as `frontend.publish`."""

    def __init__(self, cell: Cell, publish: Callable[..., None] = frontend.publish) -> None:
        self._cell = cell
        self._publish = publish

    def stream(self, name: str, text: str) -> None:
        self._publish(self._cell, "stream", {"name": name, "text": text})

    def display(
        self,
        data: dict[str, Any],
        metadata: dict[str, Any],
        transient: dict[str, Any],
        *,
        update: bool = False,
    ) -> None:
        content = {"data": data, "metadata": metadata, "transient": transient}
        self._publish(self._cell, "update_display_data" if update else "display_data", content)

    def result(self, data: dict[str, Any], metadata: dict[str, Any]) -> None:
        content = {"data": data, "metadata": metadata, "execution_count": self._cell.count}
        self._publish(self._cell, "execute_result", content)

    def value(self, value: Any) -> None:
        """`Out` belongs to the cells that run in the foreground."""

    def clear(self, *, wait: bool) -> None:
        self._publish(self._cell, "clear_output", {"wait": wait})

    def error(self, content: dict[str, Any]) -> None:
        kept = {key: content.get(key, "") for key in ("ename", "evalue")}
        self._publish(
            self._cell, "error", {**kept, "traceback": list(content.get("traceback") or [])}
        )


class Display:
    """The output of one execution, shown in `sink`; `late`, what comes of it after its end."""

    def __init__(self, sink: Sink | None = None, *, late: bool = False) -> None:
        self._sink: Sink = sink or Here()
        self._late = late
        self._status_id: str | None = None
        self._status_since = time.monotonic()
        self._stories: list[dict[str, Any]] = []
        self._clear_next = False
        # An Output widget of the cell takes what it shows now: clearing clears the widget.
        self.captured = False
        self.error: dict[str, Any] | None = None
        self._held: dict[str, Any] | None = None
        # Who follows a cell sets this, and calls `flush` when `due` and at the end.
        self.paced = False
        self._printed = 0
        self._pieces: list[tuple[str, str]] = []
        self._next_piece = 0.0

    def show(self, kind: str, body: dict[str, Any]) -> None:
        if kind != "stream":
            self.flush()
        method = getattr(self, f"_{kind}", None)
        if method is not None:
            if kind in OUTPUT:
                self.flush_error()  # the cell went on after it
            method(body["content"], body)

    # --- Jupyter's messages -----------------------------------------------------------------------

    def _stream(self, content: dict[str, Any], _: Any) -> None:
        self._clear_if_asked()
        self._printed += len(content["text"])
        if self.paced and self._printed > PLENTY:
            self._pieces.append((content["name"], content["text"]))
            if self.due == 0:
                self.flush()
        else:
            self._sink.stream(content["name"], content["text"])

    @property
    def due(self) -> float | None:
        """Seconds until printed text that waits is to be shown; None if there is none."""
        return max(0.0, self._next_piece - time.monotonic()) if self._pieces else None

    def flush(self) -> None:
        """Show the printed text that waits. A page draws an output anew for each piece of it."""
        if self._pieces:
            pieces, self._pieces = self._pieces, []
            for name, run in itertools.groupby(pieces, key=lambda piece: piece[0]):
                self._sink.stream(name, "".join(text for _, text in run))
            self._next_piece = time.monotonic() + PIECE_S * self._printed / PLENTY

    def _display_data(self, content: dict[str, Any], _: Any, *, update: bool = False) -> None:
        if not update:
            self._clear_if_asked()
        self._sink.display(
            content["data"],
            content.get("metadata") or {},
            content.get("transient") or {},
            update=update,
        )

    def _update_display_data(self, content: dict[str, Any], body: Any) -> None:
        self._display_data(content, body, update=True)

    def _execute_result(self, content: dict[str, Any], _: Any) -> None:
        self._clear_if_asked()
        self._sink.result(content["data"], content.get("metadata") or {})

    def _clear_output(self, content: dict[str, Any], _: Any) -> None:
        wait = content.get("wait", False)
        if self.captured or self._late:
            self._sink.clear(wait=wait)
        elif wait:
            # For the cell's own next output. A line of ours or the footer must not set it off.
            self._clear_next = True
        else:
            self._clear(wait=False)

    def _clear_if_asked(self) -> None:
        if self._clear_next and not self.captured:
            self._clear(wait=True)

    def _clear(self, *, wait: bool) -> None:
        """Clear the cell, but for what happened to its session."""
        self._clear_next = False
        self._status_id = None
        self._sink.clear(wait=wait)
        for story in self._stories:
            self._line(**story)

    def _error(self, content: dict[str, Any], _: Any) -> None:
        self._clear_if_asked()
        self.error = content
        if isinstance(self._sink, Here):
            self._held = content  # if it ends the cell, it is raised, and so shown
        else:
            self._sink.error(content)

    def flush_error(self) -> None:
        """Show the error that was held back: it did not end the cell (`%run`, a failing repr)."""
        held, self._held = self._held, None
        if held is not None:
            self._sink.error(held)

    def with_traceback(self, done: dict[str, Any]) -> dict[str, Any]:
        """The last event of a cell that failed, with the traceback of the error that ended it."""
        error, name = self.error, done.get("ename")
        if error is not None and name in (error["ename"], "ExecutionTimeout", "BudgetExceeded"):
            # Output came after it (a figure that was open), and so it is shown already.
            shown = isinstance(self._sink, Here) and self._held is not error
            self._held = None
            return {**done, "traceback": error["traceback"], "shown": shown}
        self.flush_error()
        return {**done, "traceback": None}

    def value(self, value: Any) -> None:
        """The cell's result, for `Out` and `_`."""
        self._sink.value(value)

    def payload(self, payload: dict[str, Any]) -> None:
        """What a reply asks of the front end: a page of help, the next cell's text."""
        ip = frontend.shell()
        if ip is not None and payload.get("source") in ("page", "set_next_input"):
            ip.payload_manager.write_payload(payload)

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

    def _mlcloud_transfer(self, content: dict[str, Any], _: Any) -> None:
        """How far the session is with values between it and the store."""
        self.status(content["text"], ready=content["ready"])

    def _story(self, content: dict[str, Any], body: dict[str, Any]) -> None:
        clock = datetime.fromtimestamp(body["time"]).strftime("%H:%M:%S")
        facts = {key: value for key, value in content.items() if key != "text"}
        mark = MARKS.get(content["what"], "·")
        self._stories.append({"text": f"{clock} {content['text']}", "mark": mark, "facts": facts})
        self._line(**self._stories[-1])

    def _mlcloud_event(self, content: dict[str, Any], body: dict[str, Any]) -> None:
        text = checkpoint_line(content)
        if text:
            self._story({**content, "what": content["type"], "text": text}, body)

    def _mlcloud_omitted(self, content: dict[str, Any], body: dict[str, Any]) -> None:
        """What was too much to be shown: one line, renewed while there is more."""
        self._line(
            omitted_line(content),
            mark="⋯",
            facts=content,
            transient={"display_id": f"mlcloud-{content['gap']}"},
            update=not content["first"],
        )

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
            "text/html": f'<div style="{STYLE}">{mark} {escaped(text)}</div>',
        }
        metadata = {"mlcloud": {"line": text, **(facts or {})}}
        self._sink.display(data, metadata, transient or {}, update=update)

    def footer(self, content: dict[str, Any]) -> None:
        """The bill under the cell."""
        data = {"text/plain": content["text"], "text/html": content["html"]}
        self._sink.display(data, content["metadata"], content.get("transient") or {})


class RemoteOutput:
    """What `_` and `Out[n]` hold where a remote cell's value stayed there: it as it was shown."""

    def __init__(self, data: dict[str, Any], metadata: dict[str, Any]) -> None:
        self.data = data
        self.metadata = metadata

    def __repr__(self) -> str:
        return str(self.data.get("text/plain", "<remote value>"))

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.data, self.metadata

    def __getattr__(self, attribute: str) -> NoReturn:
        if attribute.startswith("_"):  # Python and IPython asking what this object can do
            raise AttributeError(attribute)
        raise AttributeError(
            f"no `.{attribute}` here: this value stayed in its session, where `_` is the value "
            "itself in the next %%remote cell. Give it a name there to use it here."
        )


def omitted_line(content: dict[str, Any]) -> str:
    """What was left out of a cell's output, and where it is."""
    from mlcloud.units import format_bytes

    amount = f"{content['lines']:,} lines ({format_bytes(content['chars'])}) left out here"
    if not content["done"]:
        amount = f"this cell prints more than a page can show: {amount} so far"
    if content["log_failure"]:
        return f"{amount}, and the log could not be written: {content['log_failure']}"
    text = f"{amount}; `%mlcloud log` has them"
    return f"{text} · latest: {content['latest']}" if content["latest"] else text


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
