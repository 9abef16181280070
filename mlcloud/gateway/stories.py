"""What happened, in words a user understands."""

from __future__ import annotations

import signal
from typing import Any

from mlcloud.units import format_bytes


def describe_death(report: dict[str, Any], memory_bytes: int) -> str:
    """A supervisor's last report as a sentence, with what is left and what to do."""
    code = report.get("exit")
    peak = int(report.get("peak_bytes") or 0)
    rest = "The session is back with its state from before this cell."
    used = f" It had used up to {format_bytes(peak)}." if peak else ""
    if report.get("reason") == "memory":
        return (
            f"the cell used more than the session's memory of {format_bytes(memory_bytes)} and was "
            f"ended.{used} Ask for more (`--memory`), or load less at a time. {rest}"
        )
    if report.get("reason"):
        return f"the kernel was ended: {report['reason']}. {rest}"
    if code is None:
        return f"the kernel ended without a trace. {rest}"
    if code < 0:
        name = signal.Signals(-code).name if -code in signal.valid_signals() else str(-code)
        why = {
            "SIGSEGV": "a crash in native code",
            "SIGABRT": "native code called abort()",
            "SIGKILL": "most likely the node ran out of memory",
            "SIGBUS": "a bus error, often a full /dev/shm",
        }.get(name, "")
        return f"the kernel died of {name}{' (' + why + ')' if why else ''}.{used} {rest}"
    return f"the cell ended its own process with exit code {code}.{used} {rest}"
