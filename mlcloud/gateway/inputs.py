"""What comes with a cell: named in the store before the cell starts, until its state is there.

    POST /v1/objects/missing ─► PUT /v1/objects ─► chunks that no manifest names
    the cell is sent off     ─► hold()    manifests/inputs/<session id>/<cell's number>.json
    a state of that cell or a later one is committed ─► let_go(), at the next `upkeep`

From then on the state names what is still needed of them (`kernel/recipes`). Number 0 are the
wheels of a session's environment: these stay until it is closed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from mlcloud.errors import Collected, Conflict, NoCheckpoint, StepExists
from mlcloud.store import Store

KIND = "inputs"
WHEELS = 0
UNSEEN = -1  # no step of a prune: a commit then looks whether all is there


class Inputs:
    """Blocking: call it in a thread. `objects` are chunks' names as the client gives them,
    `hash:size`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def hold(self, session_id: str, number: int, objects: Iterable[str]) -> None:
        """Keep them from being removed. Raises `Collected` where some are gone already."""
        refs = sorted({f"blake3:{name}" for name in objects})
        if not refs:
            return
        for _ in range(2):
            with contextlib.suppress(StepExists):
                try:
                    self._store.commit(KIND, session_id, number, {"objects": refs}, since=UNSEEN)
                except Collected:
                    raise Collected(
                        "values that came with the cell are not in the store any more: nothing of "
                        "it ran, run it again"
                    ) from None
                return
            with contextlib.suppress(NoCheckpoint):
                if set(refs) <= set(self._store.read(KIND, session_id, number)["objects"]):
                    return  # the same one, on another node
            # Of one whose end the record of a lost head does not have: this number is another's.
            self._store.discard(KIND, session_id, number)
        raise Conflict(f"another head holds the inputs of cell {number} of {session_id}")

    def let_go(self, session_id: str, up_to: int) -> None:
        """Of the cells up to this number, whose state is in the store."""
        for number in self._store.steps(KIND, session_id):
            if WHEELS < number <= up_to:
                self._store.discard(KIND, session_id, number)
