"""What a new node may cost: what budgets leave, told to who buys nodes (`cluster.ceiling`).

    the cluster's budgets                        ─► usd, of any node
    a session's, user's or job's, while it asks  ─► usd, of a node of the type that it asks for

Ray asks for nodes by their type, and not for whom. So who asks says it here, before Ray hears of
it, for as long as it waits (`asking`). Of several who ask for one type, what the richest may spend
is the limit: the node may be his, and what others cannot pay for is refused when they start. A
session's part of a node is less than the node: its budget leaves as much more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from mlcloud.cluster import ceiling
from mlcloud.cluster.ceiling import Ceiling, OfType
from mlcloud.cluster.records import now
from mlcloud.cluster.shapes import HostRequest
from mlcloud.cost.least import RULES
from mlcloud.gateway.billing import is_worker

if TYPE_CHECKING:
    from mlcloud.gateway.budgets import Budgets, InForce
    from mlcloud.gateway.session import Services, Session


@dataclass(frozen=True, eq=False)
class _Asking:
    """Somebody of `whose` scopes waits for nodes of a type, since then: each part of `whose` pays
    for a node alone."""

    node_type: str
    whose: Sequence[Sequence[str]]
    share: Decimal
    since: datetime


class Buying:
    """Of one gateway. `stop_s`: what a node costs at least where its cloud bills by the second."""

    def __init__(self, budgets: Budgets, services: Services, stop_s: float) -> None:
        self._budgets, self._services, self._stop_s = budgets, services, stop_s
        self._asking: list[_Asking] = []
        self._limited: bool | None = None  # None: not known yet

    @contextmanager
    def asking(self, request: HostRequest, whose: Session | Sequence[str]) -> Iterator[None]:
        """A session, or any of these jobs, waits for nodes from here to the end of the block."""
        payers = self._budgets.payers
        if isinstance(whose, Sequence):
            scopes = [[each] for each in whose]
        else:
            cells = [each for each in (whose.current, *whose.queue) if each is not None]
            job = next(filter(None, (each.options.get("job") for each in cells)), None)
            scopes = [payers.scopes(whose, job)]
        share = Decimal(str(min(1.0, request.share or 1.0)))
        asking = _Asking(request.node_type.name, scopes, share, now())
        self._asking.append(asking)
        try:
            self.limit()
            yield
        finally:
            self._asking.remove(asking)

    def limit(self) -> None:
        """Tell who buys nodes; and where nothing limits them, once."""
        root = self._services.cluster.cloud.root
        lefts = [(self.left(each), each) for each in self._budgets if each.of_all]
        types = self._of_types()
        if not lefts and not types:
            if self._limited is not False:
                ceiling.write(root, None)
                self._limited = False
            return
        usd, why = None, ""
        if lefts:
            usd, budget = min(lefts, key=lambda each: each[0])  # of several limits the nearest
            why = self._too_little(budget)
        self._limited = True
        ceiling.write(
            root,
            Ceiling(
                usd=usd,
                at=now(),
                least_s={
                    cloud: max(rule.least.total_seconds(), self._stop_s)
                    for cloud, rule in RULES.items()
                },
                else_s=max(self._services.billing.least.simulated.total_seconds(), self._stop_s),
                why=why,
                types=types,
            ),
        )

    def left(self, budget: InForce) -> Decimal:
        """What may be bought with it."""
        if self._budgets.is_stopped(budget):
            return Decimal(0)
        seen = self._budgets.look(budget)
        return max(Decimal(0), budget.limit.usd - seen.spent - seen.reserve)

    def _too_little(self, budget: InForce) -> str:
        whom = self._budgets.payers.words(budget.whose)
        return f"of the budget of {whom} of {budget.limit} too little is left"

    def _of_types(self) -> dict[str, OfType]:
        found = {}
        for name in dict.fromkeys(each.node_type for each in self._asking):
            here = [each for each in self._asking if each.node_type == name]
            limits = [self._of_one(each, scopes) for each in here for scopes in each.whose]
            known = [each for each in limits if each is not None]
            if len(known) == len(limits) > 0:  # else somebody asks whom nothing limits
                usd, why = max(known)
                since = min(each.since for each in here)
                found[name] = OfType(max(Decimal(0), usd - self._idle(name, since)), why)
        return found

    def _of_one(self, asking: _Asking, scopes: Sequence[str]) -> tuple[Decimal, str] | None:
        """What a node may cost at least, by the nearest of these budgets; None: none limits it."""
        lefts = [
            (self.left(each), each)
            for each in self._budgets
            if each.whose in scopes and not each.of_all
        ]
        if not lefts:
            return None
        usd, budget = min(lefts, key=lambda each: each[0])
        return usd / asking.share, self._too_little(budget)

    def _idle(self, node_type: str, since: datetime) -> Decimal:
        """What is owed by nodes that were bought for who asks, and that nobody pays for yet."""
        billing = self._services.billing
        nodes = [
            each
            for each in self._services.cluster.cloud.instances()
            if each.alive
            and is_worker(each)
            and each.node_type == node_type
            and each.launched_at >= since
            and not billing.ledger.placements_on(each.id)
        ]
        owed = (billing.least_of(each.offer, self._stop_s) for each in nodes)
        return sum(owed, Decimal(0))
