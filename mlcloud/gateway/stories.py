"""What happened, in words a user understands."""

from __future__ import annotations

import signal
from datetime import datetime
from typing import Any

from mlcloud.cluster.attempts import Attempt
from mlcloud.units import format_bytes, format_seconds, format_usd_per_hour


def describe_death(report: dict[str, Any], memory_bytes: int) -> str:
    """A supervisor's last report as a sentence, with what is left and what to do."""
    if report.get("rank") is not None:
        own = {key: value for key, value in report.items() if key not in ("rank", "why")}
        died = describe_death(own, memory_bytes)
        why = f"{report['why']}. " if report.get("why") else ""
        return f"{why}rank {report['rank']}: {died} All ranks begin anew from there."
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


def attempt(tried: Attempt, now: datetime) -> str:
    """A try to buy a node, for who waits for it."""
    again = ""
    if tried.until is not None and tried.until > now:
        again = f"; tried again in {format_seconds(tried.until - now)}"
    if not tried.instance_type:
        return f"{tried.detail}{again}"
    place = f"{tried.instance_type} {tried.market} {tried.zone}"
    if tried.what == "launched":
        simulated = " simulated" if tried.simulated else ""
        return f"{place} is starting ({format_usd_per_hour(tried.usd_per_hour)}{simulated})"
    return f"{place}: {tried.detail}; trying the next offer"
