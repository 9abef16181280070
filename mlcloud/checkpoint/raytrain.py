"""Ray Train's workers (Ray Train v2), resumed at the last committed step.

    def train(config):                                   # runs on each worker
        run = Resumable(mlcloud.Checkpoints("s3://bucket/exp"))
        for step in range(run.restore(state), 1000):
            train_one(step)
            run.report({"loss": loss}, state, step + 1)

    report ── due? ─► rank 0 saves to the store ─► ray.train.report(metrics, Checkpoint: store,
                                                     series and step, in a file of 100 bytes)
    a worker dies ─► Ray Train starts the workers anew ─► restore ─► the newest step, on all workers

Ray Train decides when to start anew; the store has the bytes, and knows best how far they go: a
report of the moment before a kill is often lost on its way to Ray Train's controller. So `restore`
takes the series' newest step, as rank 0 sees it. Ray Train's own checkpoint says where to begin
when the series is still empty: another run's, `DataParallelTrainer(resume_from_checkpoint=…)`.

With a process group (`TorchTrainer`) the workers agree on when to save, and each keeps its random
state. Without one, rank 0 saves alone, and the other workers' random states start anew.

Ray Train's storage, `RunConfig(storage_path=…)`, is needed all the same, for the small files; on
an fsspec filesystem it wants `pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from mlcloud import errors
from mlcloud.checkpoint import randomness
from mlcloud.checkpoint.checkpoints import Checkpoints
from mlcloud.checkpoint.codec import plain
from mlcloud.checkpoint.front import RANKS, Front, check, distributed, own_of
from mlcloud.checkpoint.restore import apply
from mlcloud.checkpoint.schedule import Every
from mlcloud.checkpoint.step import Loaded

#: The file in Ray Train's checkpoint.
POINTER = "mlcloud.json"


class Resumable:
    """Saves and restores the state of a train loop on Ray Train; made in the loop, by each worker.

    Args:
        checkpoints: where to save; one series for one training.
        every: a number of steps, a duration (`"30s"`), or `"auto"`, which weighs the measured cost
            of a save against the time a preemption would lose. On a cloud's notice it is saved at
            once, if the deadline allows.
    """

    def __init__(self, checkpoints: Checkpoints, every: Every = "auto") -> None:
        import ray.train

        self._front = Front(checkpoints, every, "mlcloud.checkpoint.raytrain")
        self._train: Any = ray.train
        self._writes = distributed() or self._train.get_context().get_world_rank() == 0
        self._restored: dict[str, Any] | None = None  # to be reported: Ray Train may not know it

    def restore(self, state: dict[Any, Any]) -> int:
        """Put the step to go on from into the objects of `state`; returns it, 0 for none.

        Raises NotCheckpointable for a state that could not be saved, UsageError for one that does
        not fit.
        """
        check(dict(state))
        loaded = self._loaded()
        if loaded is None:
            return 0
        before = randomness.capture()
        ranks = plain(loaded.state.get(RANKS))
        apply(loaded, state, self._front.checkpoints.name)
        if not self._writes:
            randomness.put_back(before)  # what was saved is rank 0's
        elif (own := own_of(ranks)) is not None:
            randomness.put_back(own)
        if self._writes:
            self._front.resumed(loaded)
        return loaded.info.step

    def report(self, metrics: dict[str, Any], state: dict[Any, Any], step: int) -> None:
        """`ray.train.report`, with `step` steps done; saves `state` before when that is due.

        To be called by all workers at the same steps, as Ray Train wants it.
        """
        pointer, self._restored = self._restored, None
        reason = self._front.reason(step) if self._writes else None
        if reason is not None:
            saved = self._front.save(state, step, reason, own=randomness.capture(), wait=True)
            if saved and self._train.get_context().get_world_rank() == 0:
                pointer = self._pointer(step)
        if pointer is None:
            self._train.report(metrics)
            return
        with tempfile.TemporaryDirectory(prefix="mlcloud-pointer-") as folder:
            (Path(folder) / POINTER).write_text(json.dumps(pointer), encoding="utf-8")
            self._train.report(metrics, checkpoint=self._train.Checkpoint.from_directory(folder))

    def _pointer(self, step: int) -> dict[str, Any]:
        checkpoints = self._front.checkpoints
        return {"store": checkpoints.store.url, "series": checkpoints.name, "step": step}

    def _loaded(self) -> Loaded | None:
        """The step to go on from, the same one on all workers."""
        from ray.train.collective import barrier, broadcast_from_rank_zero

        found = self._find() if self._train.get_context().get_world_rank() == 0 else None
        where = broadcast_from_rank_zero(found and found[0])
        if where is None:
            return None
        place = (where["store"], where["series"], int(where["step"]))
        loaded = self._read(*place) if found is None else found[1]
        barrier()  # rank 0 does not save, and remove old steps, before all have read this one
        return loaded

    def _find(self) -> tuple[dict[str, Any], Loaded] | None:
        loaded = self._front.find()
        if loaded is not None:
            self._front.saved = loaded.info.step
            self._restored = self._pointer(loaded.info.step)
            return self._restored, loaded
        reported = self._train.get_checkpoint()
        if reported is None:
            return None
        with reported.as_directory() as folder:
            path = Path(folder) / POINTER
            if not path.is_file():
                raise errors.UsageError(
                    f"Ray Train's checkpoint {reported.path} was not made by mlcloud: restore it "
                    "with ray.train.get_checkpoint(), or start a run without it"
                )
            pointer = json.loads(path.read_text(encoding="utf-8"))
        return pointer, self._read(pointer["store"], pointer["series"], int(pointer["step"]))

    def _read(self, store: str, series: str, step: int) -> Loaded:
        checkpoints = self._front.checkpoints
        if (store, series) != (checkpoints.store.url, checkpoints.name):
            checkpoints = Checkpoints(store, series)
        return checkpoints.read(step)
