"""Idleness: sessions that stand still on a node, and nodes that hold no session.

now      an idle session, until it parks itself; a node or a spare that nobody uses
history  stretches between a session's cells: what a shorter idle timeout would have saved,
         less the nodes that it would have had to wait for once more; of one session, and of all
         that there were, for the cluster's own default
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal

from mlcloud.cost.advice.facts import Facts, SessionFacts, gaps
from mlcloud.cost.advice.working import HOURS_A_MONTH, Advice, Working, number, short
from mlcloud.cost.ledger import NodeSpan
from mlcloud.cost.meter import usd_per_hour_now
from mlcloud.units import format_seconds

NOW_S = 30.0  # idle for less: its next cell is being written
SPARE_S = 600.0
TIMEOUTS_S = (60, 120, 300, 600, 900, 1800, 3600)


def idle(facts: Facts) -> Iterator[Advice]:
    for session in facts.sessions:
        for find in (_park_now, _shorter_timeout):
            advice = find(facts, session)
            if advice is not None:
                yield advice
    everybody = _shorter_default(facts)
    if everybody is not None:
        yield everybody
    for node in facts.ledger.nodes:
        advice = _unused_node(facts, node)
        if advice is not None:
            yield advice


def _park_now(facts: Facts, session: SessionFacts) -> Advice | None:
    if session.idle_since is None:
        return None
    idle_s = (facts.now - session.idle_since).total_seconds()
    rate = usd_per_hour_now(facts.ledger, facts.now, session.id)
    left_s = session.idle_timeout_s - idle_s
    if idle_s < NOW_S or rate <= 0:
        return None
    working = Working()
    since = format_seconds(round(idle_s))
    working.fact(f"idle since {session.idle_since:%Y-%m-%d %H:%M:%S} UTC: {since}")
    if session.busy_why:
        working.fact(f"{session.busy_why}: an hour more is counted")
        until, left_s = session.busy_why, 3600.0
    elif left_s <= 0:
        return None
    else:
        working.line("until it parks itself", f"{session.idle_timeout_s:g} − {short(idle_s)}", "s")
        until = "parked now, it bills no more"
    price = f"{number(rate.normalize())} × {short(left_s)} ÷ 3600"
    saved = working.line("bills until then", price, "$")
    return _advice(
        facts,
        "park",
        f"session {session.name}",
        f"idle for {since} at ${number(rate.normalize())}/h: {until}",
        saved,
        working,
        f"%mlcloud park {session.name}",
        once=True,
    )


def _shorter_timeout(facts: Facts, session: SessionFacts) -> Advice | None:
    stretches = _idle_stretches(facts, session.id)
    return _shorter(
        facts,
        f"session {session.name}",
        stretches,
        session.idle_timeout_s,
        'mlcloud.session(…, idle_timeout="{0}"), or MLCLOUD_IDLE_TIMEOUT={0}',
    )


def _shorter_default(facts: Facts) -> Advice | None:
    """Most sessions are closed by the time that anybody asks: what all of them would have saved."""
    ids = dict.fromkeys(each.session_id for each in facts.ledger.placements)
    here = {each.id for each in facts.sessions}
    if facts.idle_timeout_s <= 0 or all(each in here for each in ids):
        return None
    stretches = [found for each in ids for found in _idle_stretches(facts, each)]
    count = f"{len(ids)} sessions" if len(ids) > 1 else "the session that there was"
    return _shorter(facts, count, stretches, facts.idle_timeout_s, "MLCLOUD_IDLE_TIMEOUT={0}")


def _shorter(
    facts: Facts,
    about: str,
    stretches: list[tuple[datetime, datetime, bool, float]],
    present_s: float,
    action: str,
) -> Advice | None:
    total_s = sum((end - begin).total_seconds() for begin, end, *_ in stretches)
    usd = sum((end - begin).total_seconds() / 3600 * rate for begin, end, _, rate in stretches)
    if total_s <= TIMEOUTS_S[0] or usd <= 0:
        return None
    best_s, best = 0.0, (0, 0.0, 0)
    for timeout in TIMEOUTS_S:
        longer = [each for each in stretches if (each[1] - each[0]).total_seconds() > timeout]
        beyond = sum((end - begin).total_seconds() - timeout for begin, end, *_ in longer)
        again = sum(used_again for _, _, used_again, _ in longer)
        saved_s = beyond - again * facts.cold_start_s
        if timeout < present_s and saved_s > best_s:
            best_s, best = saved_s, (timeout, beyond, again)
    timeout, beyond, again = best
    if not timeout:
        return None
    working = Working()
    text = f"{timeout}s" if timeout < 60 else f"{timeout // 60}m"
    working.fact(f"idle on a node: {len(stretches)} times, {short(total_s)} s, ${short(usd)}")
    rate = working.line("an hour of it", f"{short(usd)} × 3600 ÷ {short(total_s)}", "$")
    working.fact(f"of that, beyond a timeout of {text}: {short(beyond)} s")
    saved_line = working.line(
        f"less a start for each of {again} times that it was used again",
        f"{short(beyond)} − {again} × {short(facts.cold_start_s)}",
        "s",
    )
    saved = working.line("saved", f"{number(saved_line)} × {number(rate)} ÷ 3600", "$")
    month = facts.monthly(working, saved) if saved > 0 else saved
    waits = f", and it would have waited for a node {_times(again)}" if again else ""
    return _advice(
        facts,
        "park",
        about,
        f"idle on a node for {short(total_s)} s, ${short(usd)}: parked after {text} "
        f"it would have saved ${number(saved)}{waits}",
        month,
        working,
        action.format(text),
    )


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _idle_stretches(facts: Facts, session_id: str) -> list[tuple[datetime, datetime, bool, float]]:
    """When it held a node and ran nothing, whether it was used again after that, and what an hour
    of it cost."""
    runs = [
        (each.started_at, each.until(facts.now)) for each in facts.ledger.executions_of(session_id)
    ]
    last = max((begin for begin, _ in runs), default=facts.since)
    found = []
    for each in facts.ledger.placements_of(session_id):
        held = max(each.started_at, facts.since), min(each.until(facts.now), facts.now)
        if held[0] < held[1] and facts.ledger.knows(each.node_id):
            node = facts.ledger.node(each.node_id)
            rate = float(each.share) * float(facts.ledger.rates(node, *held)[0].usd_per_hour)
            found += [(begin, end, last >= end, rate) for begin, end in gaps([held], runs)]
    return found


def _unused_node(facts: Facts, node: NodeSpan) -> Advice | None:
    price = node.offer.usd_per_hour
    if node.ended_at is not None or price <= 0 or node.node_id in facts.heads:
        return None
    placed = facts.ledger.placements_on(node.node_id)
    if any(each.ended_at is None for each in placed):
        return None
    since = max([each.until(facts.now) for each in placed] + [node.started_at])
    idle_s = (facts.now - since).total_seconds()
    spare = facts.spares > 0
    if idle_s <= (SPARE_S if spare else facts.node_idle_s + NOW_S) or (spare and placed):
        return None
    working = Working()
    if spare:
        working.fact(f"kept as one of {facts.spares} warm spares; held no session since its launch")
    else:
        working.fact(f"it should have been given back after {facts.node_idle_s:g} s")
    working.fact(f"without a session for {short(idle_s)} s, at ${number(price)}/h")
    month = working.line("a month of it", f"{number(price)} × {number(HOURS_A_MONTH)}", "$")
    return _advice(
        facts,
        "idle-node",
        f"node {node.node_id}",
        f"no session for {short(idle_s)} s at ${number(price)}/h",
        month,
        working,
        "MLCLOUD_WARM_SPARES=0" if spare else "%mlcloud down",
        simulated=node.offer.simulated,
    )


def _advice(
    facts: Facts,
    kind: str,
    about: str,
    text: str,
    saved: Decimal,
    working: Working,
    action: str,
    *,
    once: bool = False,
    simulated: bool | None = None,
) -> Advice:
    known = [node.offer.simulated for node in facts.ledger.nodes]
    return Advice(
        kind=kind,
        about=about,
        text=text,
        saves_usd=max(saved, Decimal(0)),
        per="once" if once else "month",
        arithmetic=tuple(working.lines),
        action=action,
        confidence="high" if once else facts.confidence,
        simulated=any(known) if simulated is None else simulated,
    )
