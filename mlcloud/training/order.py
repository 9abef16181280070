"""Which samples make up each step's batch: the same for any number of ranks.

    samples, in an order made from seed and epoch ─► step k: the k-th `global_batch` of them
                                                       └─ rank r: the r-th part of these

A step is known by its number alone, so a training that goes on at step k with other ranks sees
exactly what it would have seen. Where the ranks do not divide the batch, the first of them have one
sample more; `Share.scale` makes up for that in the mean of their gradients.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import lru_cache

from mlcloud.errors import UsageError


@dataclass(frozen=True)
class Share:
    """How much of a step's batch a rank has. `weight`: of 1; `scale`: what its mean loss is to be
    multiplied by, so that the mean over the ranks is the mean over the whole batch."""

    weight: float
    scale: float


class Order:
    """The batches of a data set of `length` samples, for `epochs` passes.

    Raises `UsageError` for a batch that is larger than the data, or smaller than `most` ranks.
    """

    def __init__(
        self,
        length: int,
        global_batch: int,
        *,
        epochs: int = 1,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = True,
        most: int = 1,
    ) -> None:
        rest = 0 if drop_last else length % global_batch if global_batch > 0 else 0
        if global_batch < 1 or epochs < 1:
            raise UsageError("global_batch and epochs are at least 1")
        if global_batch < most:
            raise UsageError(
                f"global_batch={global_batch} is not enough for up to {most} workers: each needs a "
                "sample in every step"
            )
        if length < global_batch and drop_last:
            raise UsageError(
                f"global_batch={global_batch} is more than the {length} samples that there are"
            )
        if 0 < rest < most:
            raise UsageError(
                f"the last batch of an epoch would have {rest} samples, fewer than up to {most} "
                "workers need: drop_last=True leaves it out"
            )
        self._length, self._batch, self._rest = length, global_batch, rest
        self._shuffle, self._seed = shuffle, seed
        self.per_epoch = length // global_batch + (1 if rest else 0)
        self.steps = self.per_epoch * epochs
        self._epoch = -1
        self._samples: list[int] = []

    @property
    def size(self) -> int:
        """Samples of a step."""
        return self._batch

    def copy(self) -> Order:
        """For who is at another step."""
        made = copy.copy(self)
        made._epoch, made._samples = -1, []
        return made

    def batch(self, step: int) -> list[int]:
        """The samples of a step, on all ranks together."""
        epoch, number = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._samples = epoch, self._shuffled(epoch)
        return self._samples[number * self._batch : (number + 1) * self._batch]

    def samples(self, step: int, rank: int, world: int) -> list[int]:
        """One rank's samples of a step."""
        batch = self.batch(step)
        each, more = divmod(len(batch), world)
        begin = rank * each + min(rank, more)
        return batch[begin : begin + each + (rank < more)]

    def share(self, step: int, rank: int, world: int) -> Share:
        """How much of a step's batch a rank has."""
        last = self._rest and (step + 1) % self.per_epoch == 0
        return _share(self._rest if last else self._batch, rank, world)

    def _shuffled(self, epoch: int) -> list[int]:
        if not self._shuffle:
            return list(range(self._length))
        import torch

        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        found: list[int] = torch.randperm(self._length, generator=generator).tolist()
        return found


@lru_cache(maxsize=16)
def _share(batch: int, rank: int, world: int) -> Share:
    each, more = divmod(batch, world)
    mine = each + (rank < more)
    return Share(mine / batch, mine * world / batch)
