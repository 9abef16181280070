"""What running nodes cost now: asked of their clouds now and then, and entered in the ledger.

    every `price_refresh`, and soon after a node was launched
      nodes that run ─► their offers ─► the cloud's own price list ─► Billing.price(node, $/h, at)
                                        (local: the simulated market)   ─► meter, footers, budgets,
                                                                           reports, FOCUS

A price counts from when the cloud says that it came into force, as far as it does and the node ran
then; else from when it was read. That may lie a while back: the first answer for a node also puts
right what an old price list had said of it. A cloud that does not answer leaves prices as they are,
and is asked again the next time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

from mlcloud.cluster.clouds.base import Instance
from mlcloud.cluster.offers import Offer, OfferKey, key_of
from mlcloud.cluster.records import now
from mlcloud.config import Settings
from mlcloud.cost import catalogue
from mlcloud.cost.prices import moves
from mlcloud.cost.refresh import current
from mlcloud.errors import MLCloudError
from mlcloud.units import format_usd_per_hour

if TYPE_CHECKING:
    from mlcloud.gateway.sessions import Sessions

log = logging.getLogger(__name__)

LOOK_S = 1.0
#: Asked no more often than so: spot moves every few minutes at AWS, monthly at Google.
LEAST_S = {"azure": 3600.0, "gcp": 6 * 3600.0}
NEW_S = 60.0  # a node that was just launched is asked for with others, this often at most
SIMULATED = "simulated market"


class Price(NamedTuple):
    usd_per_hour: Decimal
    source: str
    since: datetime | None


class Repricing:
    """Of one gateway."""

    def __init__(
        self, settings: Settings, sessions: Sessions, endpoints: Mapping[str, str] | None = None
    ) -> None:
        self._sessions = sessions
        self._services = sessions.services
        self._every_s = settings.price_refresh.total_seconds()
        self._moves_s = settings.price_moves.total_seconds()
        self._endpoints = endpoints or {}
        self._asked: dict[str, float] = {}  # clouds: when
        self._known: set[str] = set()  # nodes that were asked for
        self._wrong = ""  # what was said last, once

    async def run(self) -> None:
        while self._every_s > 0:
            await asyncio.sleep(min(LOOK_S, self._every_s))
            try:
                await self.look()
            except MLCloudError as error:
                self._say(str(error))
            except Exception:
                log.exception("what running nodes cost could not be asked for; it is tried again")

    async def look(self) -> int:
        """Ask for what is due; how many prices had changed."""
        cloud = self._services.cluster.cloud
        if self._moves_s > 0:
            await asyncio.to_thread(cloud.move_prices, moves(int(time.time() // self._moves_s)))
        instances = [e for e in await asyncio.to_thread(cloud.instances) if e.alive]
        changed = 0
        for name in dict.fromkeys(each.offer.cloud for each in instances):
            nodes = [each for each in instances if each.offer.cloud == name]
            if self._due(name, nodes):
                self._asked[name] = time.monotonic()
                self._known |= {each.id for each in nodes}
                prices = await asyncio.to_thread(self._prices, name, nodes)
                changed += sum(self._enter(each, prices.get(key_of(each.offer))) for each in nodes)
        return changed

    def _due(self, name: str, nodes: list[Instance]) -> bool:
        asked = self._asked.get(name)
        if asked is None:
            return True
        ago = time.monotonic() - asked
        new = any(each.id not in self._known for each in nodes)
        often = max(self._every_s, LEAST_S.get(name, 0.0))
        return ago >= (min(NEW_S, often) if new else often)

    def _prices(self, name: str, nodes: list[Instance]) -> dict[OfferKey, Price]:
        """Blocks."""
        if name not in catalogue.CLOUDS:
            sold = self._services.cluster.cloud.offers()
            return {key_of(e): Price(e.usd_per_hour, _source(e), None) for e in sold}
        quotes, wrong = current([each.offer for each in nodes], endpoints=self._endpoints)
        self._say("; ".join(wrong))
        return {key: Price(q.usd_per_hour, q.source, q.since) for key, q in quotes.items()}

    def _say(self, wrong: str) -> None:
        if wrong and wrong != self._wrong:
            log.warning("what running nodes cost is not known anew: %s", wrong)
        self._wrong = wrong

    def _enter(self, node: Instance, price: Price | None) -> bool:
        billing = self._services.billing
        if price is None or not billing.ledger.knows(node.id):
            return False
        before = billing.price_of(node.id)
        # Not before what was entered last: of two answers the later one holds.
        known = [e.at for e in billing.ledger.price_changes if e.node_id == node.id]
        at = max([node.launched_at, *known, min(price.since or now(), now())])
        if not billing.price(node.id, price.usd_per_hour, at, price.source):
            return False
        text = (
            f"the price of its node is {format_usd_per_hour(price.usd_per_hour)} now, it was "
            f"{format_usd_per_hour(before)} ({price.source})"
        )
        log.info("%s: %s", node.id, text)
        for session in self._sessions:
            if session.host is not None and session.host.instance == node.id:
                session.story("price", text)
        return True


def _source(offer: Offer) -> str:
    return SIMULATED if offer.simulated else offer.source
