"""Snapshots as the gateway keeps them: signed manifests, newest first, a damaged one passed over.

The kernel puts chunks into the store and names them; only the gateway commits, because only it
holds the key. So a manifest with a good signature was written by this gateway, and its pickles may
be loaded.
"""

from __future__ import annotations

import contextlib
from typing import Any

from mlcloud.errors import Damaged, NoCheckpoint, NotFound, StepExists
from mlcloud.store import Signer, Store

KIND = "sessions"


def cannot_survive(body: dict[str, Any]) -> dict[str, str]:
    """Names of a snapshot that a move would lose, and why: no cells make them again."""
    recipes, cells = body.get("recipes", {}), body.get("cells", {})
    lost: dict[str, str] = {}
    for name, why in body.get("skipped", {}).items():
        steps = recipes.get(name, {}).get("cells", [])
        effects = [cells[str(step)]["effects"] for step in steps if str(step) in cells]
        outside = next((each[0] for each in effects if each), "")
        if not steps or len(effects) < len(steps):
            lost[name] = why
        elif outside:
            lost[name] = f"{why}; the cell that made it {outside}, and is not run again by itself"
    for rank, other in enumerate(body.get("ranks", []), 1):
        found = cannot_survive(other).items()
        lost.update({f"{name} (rank {rank})": why for name, why in found if name not in lost})
    return lost


class SnapshotLog:
    """Blocking: call it in a thread."""

    def __init__(self, store: Store, signer: Signer) -> None:
        self._store = store
        self._signer = signer

    def commit(
        self, session_id: str, ordinal: int, execution_id: str, body: dict[str, Any]
    ) -> None:
        """Commit the state after an execution. Committing the same execution again is fine."""
        body = {**body, "execution_id": execution_id}
        since = body.pop("since", None)
        sign = self._signer.sign
        try:
            self._store.commit(KIND, session_id, ordinal, body, sign=sign, since=since)
        except StepExists:
            theirs = self._store.read(KIND, session_id, ordinal, verify=self._signer.verify)
            if theirs.get("execution_id") != execution_id:
                raise

    def read(self, session_id: str, step: int) -> dict[str, Any]:
        """One snapshot's body. Raises `NotFound` and `Damaged`."""
        try:
            return self._store.read(KIND, session_id, step, verify=self._signer.verify)
        except NoCheckpoint as error:
            raise NotFound(str(error)) from error

    def newest(self, session_id: str, most: int) -> list[tuple[int, dict[str, Any]]]:
        """The last readable snapshots, oldest first."""
        found = []
        for step in self._store.steps(KIND, session_id)[-most:]:
            with contextlib.suppress(Damaged, NotFound):
                found.append((step, self.read(session_id, step)))
        return found

    def latest(
        self, session_id: str, before: int | None = None
    ) -> tuple[int, dict[str, Any], list[str]] | None:
        """The newest readable snapshot (older than `before`), and what had to be passed over."""
        passed: list[str] = []
        for step in reversed(self._store.steps(KIND, session_id)):
            if before is not None and step >= before:
                continue
            try:
                body = self._store.read(KIND, session_id, step, verify=self._signer.verify)
            except Damaged as error:
                passed.append(
                    f"the state after cell {step} is damaged, going further back: {error}"
                )
                continue
            return step, body, passed
        return None
