"""All advice that follows from the facts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mlcloud.cost.advice.commitment import commitment
from mlcloud.cost.advice.facts import Facts
from mlcloud.cost.advice.idle import idle
from mlcloud.cost.advice.leftover import leftover
from mlcloud.cost.advice.market import market
from mlcloud.cost.advice.rightsizing import right_size
from mlcloud.cost.advice.working import Advice

KINDS: tuple[Callable[[Facts], Iterator[Advice]], ...] = (
    right_size,
    idle,
    market,
    commitment,
    leftover,
)


def advise(facts: Facts) -> list[Advice]:
    """The biggest saving first. Savings are not added up: two of them may be of the same hours."""
    found = [advice for kind in KINDS for advice in kind(facts)]
    # What saves nothing is told where it was asked for, or where its price is not known.
    told = [
        each for each in found if each.saves_usd > 0 or each.kind in ("own-machine", "leftover")
    ]
    return sorted(told, key=lambda each: (-each.saves_usd, each.kind, each.about))
