"""Whether a cell that was cut short, or whose state was lost with its node, runs again.

    --on-preempt rerun   yes                 fail   no
                 ask     whoever is attached is asked; where nobody is, no
                 (none)  yes; but a cell that was seen to do something outside its session is asked
                         about as by `ask`, since that would happen twice

A safe cell is never asked about: it does not run again. Part of `session.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlcloud.errors import MLCloudError, SessionFailed
from mlcloud.gateway.execution import Execution

if TYPE_CHECKING:
    from mlcloud.gateway.session import Session

HOW = "run it again yourself if that does no harm, or give it --on-preempt rerun"


async def refusal(session: Session, execution: Execution, what: str) -> MLCloudError | None:
    """None if it may run again, else why not. `what` has happened to it, in words."""
    policy = execution.options.get("on_preempt")
    if policy == "fail":
        return SessionFailed(f"{what}; it was not run again, as --on-preempt fail asks")
    if policy == "rerun" or (policy is None and not execution.effects):
        return None
    did = f" It {' and '.join(execution.effects[:3])}." if execution.effects else ""
    asked = session.current
    able = asked is not None and asked.options.get("allow_stdin")
    if asked is None or not able or not session.questions.clients:
        return SessionFailed(
            f"{what}.{did} It was not run again by itself, since nobody is attached who could be "
            f"asked: {HOW}"
        )
    prompt = f"{what[0].upper()}{what[1:]}.{did} Run it again? [y/N] "
    if await session.questions.confirm(asked.id, prompt):
        return None
    return SessionFailed(f"{what}; it was not run again, as you said. {HOW[0].upper()}{HOW[1:]}")
