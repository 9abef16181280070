"""A machine that might be bought, as a user writes it:

name=box,watts=650,kwh=0.30,purchase=4000,years=4,cpus=16,memory=64GB[,gpu=A100:1][,resale=500]
"""

from __future__ import annotations

from datetime import date

from mlcloud.cost.advice.facts import Own
from mlcloud.cost.own_machine import own_machine
from mlcloud.errors import UsageError
from mlcloud.units import parse_gpu, parse_size, suggest

_NEEDED = ("watts", "kwh", "purchase", "years", "cpus", "memory")
_KNOWN = ("name", *_NEEDED, "gpu", "resale")


def read_own(text: str, today: date) -> Own:
    """Raises `UsageError`."""
    given: dict[str, str] = {}
    for part in filter(None, (each.strip() for each in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals or key not in _KNOWN:
            raise UsageError(
                f"cannot read {part!r} of a machine: it is KEY=VALUE with {', '.join(_KNOWN)}"
                f"{suggest(key, _KNOWN)}"
            )
        given[key] = value
    missing = [key for key in _NEEDED if key not in given]
    if missing:
        raise UsageError(f"of the machine {text!r} is missing: {', '.join(missing)}")
    machine = own_machine(
        given.get("name", "your machine"),
        given["watts"],
        given["kwh"],
        given["purchase"],
        given["years"],
        resale=given.get("resale", 0),
    )
    try:
        cpus = float(given["cpus"])
    except ValueError:
        raise UsageError(f"cpus is a number, not {given['cpus']!r}") from None
    accelerator, count = parse_gpu(given["gpu"]) if "gpu" in given else (None, 0)
    offer = machine.offer(
        cpus=cpus,
        memory_bytes=parse_size(given["memory"]),
        accelerator=accelerator,
        accelerator_count=count,
        as_of=today,
    )
    return Own(machine, offer)
