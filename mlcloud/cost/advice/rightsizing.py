"""Right-sizing: for each session, the cheapest offer that holds what its cells were seen to use.

    cells of a session on its present machine ─► Need (with headroom) ─► offers that hold it
        ─► price × longest time, the cheapest ─► advice, where that is less than it pays

An offer *holds* a need when its CPUs, its memory and its accelerators' memory do; an accelerator
must be in the table and of the same family, and none is advised where the GPU was used at all and
nothing is known of its memory. CPUs are taken for equally fast, and a session for alone on its
node: what is advised is a whole node, what it pays now its share of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

from mlcloud.cluster.offers import Offer
from mlcloud.cluster.shapes import USABLE_MEMORY
from mlcloud.cost.advice.accelerators import ACCELERATORS, longest
from mlcloud.cost.advice.facts import Facts, SessionFacts
from mlcloud.cost.advice.working import Advice, Confidence, Working, evaluate, number, short
from mlcloud.cost.usage import Usage
from mlcloud.units import format_seconds

LEAST_S = 5.0  # of measured work, before anything is advised
LONG_S = 1.0  # a shorter cell does not say how many CPUs it needs: the clock ticks in 10 ms
HEADROOM = Decimal("1.25")
_GB = 10**9
_GIB = 2**30


@dataclass(frozen=True)
class Need:
    """What an offer must have, headroom included. `gpu_used` is the share of the time; `gpus` 0:
    no accelerator is needed; None: how much is not known."""

    cpus: float
    memory_bytes: float
    gpus: int | None = 0
    gpu_memory_bytes: float = 0
    gpu_used: float = 0.0


def need_of(cells: Sequence[Usage]) -> Need:
    """Of the cells of one session on one kind of machine."""
    headroom = float(HEADROOM)
    seen = [each.gpu for each in cells if each.gpu is not None]
    gpus: int | None = max((each.busy for each in seen), default=0)
    looked = sum(each.seconds for each in cells if each.gpu is not None)
    if cells[-1].offer.accelerator and looked < LEAST_S:
        gpus = None
    weighted = sum(each.gpu.mean * each.seconds for each in cells if each.gpu is not None)
    return Need(
        cpus=busiest(cells) * headroom,
        memory_bytes=max(each.memory_peak for each in cells) * headroom,
        gpus=gpus,
        gpu_memory_bytes=max((each.memory_peak for each in seen), default=0) * headroom,
        gpu_used=weighted / looked if looked else 0.0,
    )


def busiest(cells: Sequence[Usage]) -> float:
    """The most CPUs that a cell kept busy."""
    return max(max(each.cpus_peak, each.cpus if each.seconds >= LONG_S else 0.0) for each in cells)


def holds(offer: Offer, need: Need, memory: int | None = None) -> bool:
    """Whether work with this need fits. `memory` is one accelerator's, where that is known of the
    instance type itself."""
    if need.gpus is None:
        return False
    if offer.cpus < need.cpus or offer.memory_bytes * USABLE_MEMORY < need.memory_bytes:
        return False
    if need.gpus == 0:
        return offer.accelerator is None
    known = ACCELERATORS.get(offer.accelerator or "")
    if known is None or offer.accelerator_count < need.gpus:
        return False
    return (memory or known.memory_gib * _GIB) >= need.gpu_memory_bytes


def right_size(facts: Facts) -> Iterator[Advice]:
    by_session: dict[str, list[Usage]] = {}
    for each in facts.usage:
        by_session.setdefault(each.session_id, []).append(each)
    for session_id, cells in by_session.items():
        session = facts.session(session_id)
        present = cells[-1].offer
        mine = [each for each in cells if each.offer.instance_type == present.instance_type]
        if session is not None and sum(each.seconds for each in mine) >= LEAST_S:
            advice = _of_session(facts, session, mine)
            if advice is not None:
                yield advice


class _Choice(NamedTuple):
    offer: Offer
    time: str
    working: Working


def _of_session(facts: Facts, session: SessionFacts, cells: list[Usage]) -> Advice | None:
    need, present = need_of(cells), cells[-1].offer
    choice = _cheapest(facts, session, need, present)
    if choice is None:
        return None
    offer, time = choice.offer, choice.time
    if session.asks == (offer.gpu, offer.cpus):
        return None  # that is what it has been given, and no cell has run there yet
    working = Working()
    used = _lines_of_need(working, cells, need, present)
    paid = _lines_of_price(working, cells)
    working.lines += choice.working.lines
    there = working.line(
        f"an hour's work on {_name(offer)} ({offer.cpus:g} CPUs)",
        f"{number(offer.usd_per_hour)} × {time}",
        "$",
    )
    ratio = working.line("of what it costs now", f"{number(there)} ÷ {number(paid)}", "×", digits=2)
    hours = working.line(
        "hours of work", f"{short(sum(each.seconds for each in cells), 6)} ÷ 3600", "h"
    )
    saved = working.line("saved", f"{number(hours)} × ({number(paid)} − {number(there)})", "$")
    if saved <= 0:
        return None
    month = facts.monthly(working, saved)
    takes = "take the same time" if evaluate(time) == 1 else f"take at most {time}×"
    lacks = _lacks(offer, present)
    if lacks:
        working.fact(lacks)
    confidence: Confidence = facts.confidence
    if present.accelerator and confidence == "high":
        confidence = "medium"
    return Advice(
        kind="right-size",
        about=f"session {session.name}",
        text=f"used {used}: {_name(offer)} would cost {number(ratio)}× and {takes}"
        + (f"; {lacks}" if lacks else ""),
        saves_usd=month,
        per="month",
        arithmetic=tuple(working.lines),
        action=_action(session, offer, present),
        confidence="low" if lacks else confidence,
        simulated=offer.simulated or present.simulated,
    )


def _cheapest(facts: Facts, session: SessionFacts, need: Need, present: Offer) -> _Choice | None:
    best: _Choice | None = None
    for offer in facts.kinds:
        if best is not None and offer.usd_per_hour >= best.offer.usd_per_hour * evaluate(best.time):
            break  # nothing takes less time than now, and the others are dearer
        if offer.instance_type == present.instance_type:
            continue
        if session.market == "on-demand" and offer.market != "on-demand":
            continue
        if not holds(offer, need, facts.accelerator_memory.get(offer.instance_type)):
            continue
        working, time = Working(), "1"
        if offer.accelerator and offer.accelerator != present.accelerator:
            found = longest(working, need.gpu_used, present.accelerator or "", offer.accelerator)
            if found is None:
                continue
            time = found
        cost = offer.usd_per_hour * evaluate(time)
        if best is None or cost < best.offer.usd_per_hour * evaluate(best.time):
            best = _Choice(offer, time, working)
    return best


def _lines_of_need(working: Working, cells: list[Usage], need: Need, present: Offer) -> str:
    """What was measured, in lines; returns it in words."""
    took = format_seconds(sum(each.seconds for each in cells))
    working.fact(f"measured: {len(cells)} cell{'s' if len(cells) > 1 else ''}, {took}")
    cpus, headroom = short(busiest(cells), 3), number(HEADROOM)
    working.fact(f"CPUs: {cpus} of {present.cpus:g} busy at most")
    working.line("CPUs with headroom", f"{cpus} × {headroom}", "CPUs")
    memory = short(max(each.memory_peak for each in cells) / _GB, 3)
    working.fact(f"memory: {memory} of {short(present.memory_bytes / _GB, 3)} GB at most")
    working.line("memory with headroom", f"{memory} × {headroom}", "GB")
    words = f"{cpus} of {present.cpus:g} CPUs and {memory} GB of memory at most"
    if not present.accelerator:
        return words
    seen = [each.gpu for each in cells if each.gpu is not None]
    there = short(max((each.memory_there for each in seen), default=0) / _GB, 3)
    held = short(max((each.memory_peak for each in seen), default=0) / _GB, 3)
    percent = short(need.gpu_used * 100, 2)
    working.fact(f"GPU: in use {percent} % of the time, {held} of {there} GB at most")
    if need.gpus == 0:
        return f"no GPU ({percent} % of the time), {words}"
    working.line("GPU memory with headroom", f"{held} × {headroom}", "GB")
    return f"{held} of {there} GB and {percent} % of the GPU"


def _lines_of_price(working: Working, cells: list[Usage]) -> Decimal:
    """What an hour costs it now."""
    hours = sum(Decimal(str(each.seconds)) for each in cells)
    parts = {(each.share, each.offer.usd_per_hour) for each in cells}
    present = cells[-1].offer
    if len(parts) == 1:
        [(share, price)] = parts
        return working.line(
            f"an hour of its part of {_name(present)}", f"{number(share)} × {number(price)}", "$"
        )
    paid = sum(Decimal(str(each.seconds)) * each.share * each.offer.usd_per_hour for each in cells)
    return working.line(
        f"an hour of its part of {present.instance_type}, on average (dollars × s ÷ s)",
        f"{short(float(paid), 6)} ÷ {short(float(hours), 6)}",
        "$",
    )


def _lacks(offer: Offer, present: Offer) -> str:
    """What code that runs now may miss there."""
    here, there = (ACCELERATORS.get(each.accelerator or "") for each in (present, offer))
    if here is None or there is None or there.bf16 or not here.bf16:
        return ""
    return f"{offer.accelerator} has no BF16"


def _name(offer: Offer) -> str:
    gpu = f"{offer.gpu} " if offer.gpu else ""
    return f"{gpu}{offer.instance_type} {offer.market}"


def _action(session: SessionFacts, offer: Offer, present: Offer) -> str:
    words = [f"%mlcloud resume {session.name}"]
    if present.accelerator:
        words.append(f"--gpu {offer.gpu or 'none'}")
    words.append(f"--cpus {offer.cpus:g}")
    if session.memory_bytes > offer.memory_bytes * USABLE_MEMORY:
        words.append("--memory none")
    return " ".join(words)
