"""What `fn(context)` of `mlcloud.train` is given: its rank, its batches, and where it reports to.

    for batch in context.batches(data, global_batch=64, state={"model": model, "opt": opt}):
        loss = loss_of(model, batch)
        context.backward(loss); opt.step(); opt.zero_grad()
        context.report(loss=loss)

The loop begins at the last committed step, whose state it puts into `state`, and saves on its way
as `mlcloud.resumable` does. At a notice all ranks save after the same step and leave; the training
goes on with those that there are then.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mlcloud.checkpoint import context as run_context
from mlcloud.checkpoint.checkpoints import Checkpoints
from mlcloud.checkpoint.saver import END, INTERVAL, NOTICE
from mlcloud.checkpoint.schedule import Every
from mlcloud.errors import UsageError
from mlcloud.training.agreement import GO_ON, LEAVE, MOST_STEPS, SAVE, Agreed, Agreement
from mlcloud.training.keeping import Keeping
from mlcloud.training.line import Line
from mlcloud.training.order import Order, Share
from mlcloud.training.result import History

LEAVE_S = 120.0  # who is not ended by then goes on
OWN_KEPT = 3


class TrainContext:
    """One rank's. `step` counts the steps done; `history` is what was reported so far."""

    def __init__(
        self, *, most: int, every: Every, checkpoints: Checkpoints | None, elastic: bool
    ) -> None:
        import torch.distributed as dist

        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.local_rank = int(os.environ.get("LOCAL_RANK", 0))
        self.step = 0
        self.history = History()
        self._most, self._every, self._elastic = max(most, self.world_size), every, elastic
        self._given = checkpoints
        self._own: Checkpoints | None = None
        # Who counts steps between two saves is not to wait for the next message for long.
        self._agreement = Agreement(every // 8 if isinstance(every, int) else MOST_STEPS)
        self._report: dict[str, float] = {}
        self._share = Share(1.0, 1.0)
        self._scaled = self._running = False

    def __repr__(self) -> str:
        return f"<training: rank {self.rank} of {self.world_size}, step {self.step}>"

    # --- the model --------------------------------------------------------------------------------

    @property
    def device(self) -> Any:
        """This rank's: a GPU where it has one."""
        import torch

        if torch.cuda.is_available():
            return torch.device("cuda", self.local_rank % torch.cuda.device_count())
        return torch.device("cpu")

    def wrap(self, model: Any, strategy: str = "ddp", **options: Any) -> Any:
        """The model on this rank's device, as DDP, or sharded by FSDP2 (`"fsdp"`: its children,
        then itself). `options` go to `DistributedDataParallel` or `fully_shard`."""
        model = model.to(self.device)
        if strategy == "ddp":
            from torch.nn.parallel import DistributedDataParallel

            ids = [self.device.index] if self.device.type == "cuda" else None
            return DistributedDataParallel(model, device_ids=ids, **options)
        if strategy != "fsdp":
            raise UsageError(f"strategy is 'ddp' or 'fsdp', not {strategy!r}")
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        options.setdefault("mesh", init_device_mesh(self.device.type, (self.world_size,)))
        for child in model.children():
            if any(True for _ in child.parameters()):
                fully_shard(child, **options)
        fully_shard(model, **options)
        return model

    @property
    def scale(self) -> float:
        """What this step's mean loss is to be multiplied by before `backward()`: 1, unless the
        ranks have parts of different sizes."""
        self._scaled = True
        return self._share.scale

    def backward(self, loss: Any) -> None:
        """`loss.backward()`, for a loss that is the mean over this rank's samples: the gradients
        are those of the mean over the whole batch, however many ranks share it."""
        scale = self.scale
        (loss if scale == 1 else loss * scale).backward()

    # --- checkpoints ------------------------------------------------------------------------------

    @property
    def checkpoints(self) -> Checkpoints:
        """Where this training is saved."""
        if self._given is not None:
            return self._given
        if self._own is None:
            run = run_context.current()
            if run is None:
                raise UsageError("outside of a session, give checkpoints=mlcloud.Checkpoints(…)")
            series = run.next_series()
            self._own = Checkpoints(run.store_url, series, keep=OWN_KEPT, report=run.report)
        return self._own

    def report(self, **values: Any) -> None:
        """Numbers of this step, such as `loss=loss`: their means over the ranks that report them
        (by samples) go to the history, and to the line under the cell. Not every step needs each
        of them: `if context.step % 100 == 0: context.report(validation=…)`."""
        for name, value in values.items():
            try:
                self._report[name] = float(value.detach() if hasattr(value, "detach") else value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise UsageError(
                    f"context.report({name}=…) takes a number, or a tensor of one, not a "
                    f"{type(value).__name__} ({error})"
                ) from None

    # --- the loop ---------------------------------------------------------------------------------

    def batches(
        self,
        dataset: Sequence[Any] | Any,
        *,
        global_batch: int,
        state: dict[Any, Any],
        epochs: int = 1,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = True,
        every: Every | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
        loaders: int = 0,
    ) -> Iterator[Any]:
        """This rank's part of each step's batch, from the last committed step on.

        `dataset` has a length and gives samples by number. A step's `global_batch` samples are the
        same for any number of ranks. `state` is saved and restored in place, as by `resumable`,
        and so is `every`. `loaders`: processes that read ahead; `collate`: as of a DataLoader.
        Where this rank has a GPU, the tensors of a batch (in lists, tuples, dicts) are on it.
        """
        if self._running:
            raise UsageError("context.batches: one loop after the other, not one inside another")
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise UsageError(
                f"context.batches: a {type(dataset).__name__} has no length, or gives no sample by "
                "its number; which samples make up a step must not depend on the number of ranks"
            )
        order = Order(
            *(len(dataset), global_batch),
            epochs=epochs,
            shuffle=shuffle,
            seed=seed,
            drop_last=drop_last,
            most=self._most,
        )
        keeping = Keeping(self.checkpoints, self._every if every is None else every, state)
        self._own = None  # another loop has another series
        self.step, self.history = keeping.restore()
        self.history.begins(self.step, self.world_size)
        self._running = True
        try:
            yield from self._steps(dataset, order, keeping, collate, loaders)
        finally:
            self._running = False
            keeping.join()

    def _steps(
        self,
        dataset: Any,
        order: Order,
        keeping: Keeping,
        collate: Callable[[list[Any]], Any] | None,
        loaders: int,
    ) -> Iterator[Any]:
        from torch.utils.data import DataLoader

        on_gpu = self.device.type == "cuda"
        loader = DataLoader(
            dataset,
            batch_sampler=_Ahead(order, self.step, self.rank, self.world_size),
            collate_fn=collate,
            num_workers=loaders,
            pin_memory=on_gpu,
        )
        line = (
            Line(self.world_size, order.steps, global_batch=order.size) if not self.rank else None
        )
        agreement = self._agreement
        reason: str | None = None
        ran_s = 0.0
        for batch in loader:
            self._share = share = order.share(self.step, self.rank, self.world_size)
            self._report, self._scaled = {}, False
            began = time.monotonic()
            yield _moved(batch, self.device) if on_gpu else batch
            ran_s += time.monotonic() - began
            self.step += 1
            if share.scale != 1 and not self._scaled:
                self._warn_of_scale()
            agreement.keep(self.step, self._report, share.weight)
            if not agreement.due:
                continue
            keeping.ran(ran_s, agreement.kept)
            ran_s = 0.0
            if self.rank == 0 and reason != NOTICE:
                reason = keeping.reason(self.step) or reason
            word = GO_ON if reason is None else LEAVE if reason == NOTICE else SAVE
            agreed = self._hear(agreement.exchange(word))
            if agreed != GO_ON and self.step < order.steps:
                agreed = max(agreed, self._hear(agreement.settle()))
                why = NOTICE if agreed == LEAVE else INTERVAL
                keeping.save(self.step, why, self.history)
                reason = None
                if agreed == LEAVE and self._elastic:
                    self._leave(keeping)
            if line is not None:
                line.show(self.step, self.history)
        self._hear(agreement.flush())
        keeping.save(self.step, END, self.history)
        if line is not None:
            line.show(self.step, self.history, last=True)

    def _hear(self, found: Agreed) -> int:
        for step, means in found.reports:
            self.history.add(step, means)
        return found.word

    def _leave(self, keeping: Keeping) -> None:
        """All is saved: the gateway ends these ranks, and makes others."""
        keeping.join()
        self._agreement.meet()
        if self.rank == 0:
            run_context.report({"type": "left", "step": self.step})
        time.sleep(LEAVE_S)

    def _warn_of_scale(self) -> None:
        warnings.warn(
            f"the {self.world_size} ranks have parts of different sizes of this step's batch: call "
            "context.backward(loss) instead of loss.backward(), or multiply it by context.scale; "
            "else the gradients are not those of the mean over the batch",
            stacklevel=3,
        )


def _moved(batch: Any, device: Any) -> Any:
    """The same with its tensors on that device."""
    if hasattr(batch, "to"):  # tensors, and what the libraries' collators give
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return type(batch)({name: _moved(value, device) for name, value in batch.items()})
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_moved(value, device) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(_moved(value, device) for value in batch)
    return batch


class _Ahead:
    """A rank's indices of each step from one on; a loader may read them before their turn."""

    def __init__(self, order: Order, step: int, rank: int, world: int) -> None:
        self._order, self._step, self._rank, self._world = order, step, rank, world

    def __len__(self) -> int:
        return max(0, self._order.steps - self._step)

    def __iter__(self) -> Iterator[list[int]]:
        ahead = self._order.copy()
        for step in range(self._step, self._order.steps):
            yield ahead.samples(step, self._rank, self._world)
