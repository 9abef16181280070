"""What of a session would be there after its node: each variable, as its newest snapshot has it.

saved        its bytes are in the store
recomputed   the cells that made it run again, with the rest restored
imported     a module
lost         neither, and why
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from mlcloud.gateway.snapshots import cannot_survive
from mlcloud.saved_models import SavedState, Variable

if TYPE_CHECKING:
    from mlcloud.gateway.session import Session


async def state(session: Session) -> SavedState:
    """Raises `Damaged` only where no snapshot can be read."""
    newest = await asyncio.to_thread(session.services.snapshots.latest, session.id)
    step, body = (0, dict[str, Any]()) if newest is None else newest[:2]
    lost = cannot_survive(body)
    others = body.get("ranks", [])
    found = [_saved(group, name) for group in body.get("groups", []) for name in group["names"]]
    for name, recipe in body.get("recipes", {}).items():
        if name not in lost:
            steps = recipe["cells"]
            seconds = sum(body["cells"][str(each)]["seconds"] for each in steps)
            cells = session.services.executions.labels(session.id, steps)
            why = body["skipped"].get(name, "")
            size = recipe.get("bytes")
            found.append(
                Variable(
                    name=name, how="recomputed", cells=cells, seconds=seconds, why=why, bytes=size
                )
            )
    found += [Variable(name=name, how="lost", why=why) for name, why in lost.items()]
    found += [Variable(name=entry["name"], how="imported") for entry in body.get("imports", [])]
    return SavedState(
        step=step,
        safe_to=session.safe_to or (session.services.executions.labels(session.id, [step])[0]),
        unsafe=len(session.unsafe),
        pending_bytes=sum(session.pending.values()),
        bytes=body.get("bytes", 0),
        files=len(body.get("files", {}).get("files", {})),
        ranks=1 + len(others),
        variables=sorted(found, key=lambda each: (_ORDER[each.how], -(each.bytes or 0), each.name)),
    )


_ORDER = {"lost": 0, "recomputed": 1, "saved": 2, "imported": 3}


def _saved(group: dict[str, Any], name: str) -> Variable:
    size = group["payload"]["size"] + sum(buffer["size"] for buffer in group["buffers"])
    others = [other for other in group["names"] if other != name]
    return Variable(name=name, how="saved", bytes=size, shares=others)
