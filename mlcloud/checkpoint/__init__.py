"""Training state that survives the node: saved whole, verified on every read, restored in place.

`Checkpoints` saves and restores; `resumable` makes a loop do it by itself. `codec.py` tells what a
state may hold and how it is written without pickle, `checkpoints.py` the format of a step,
`resumable.py` when a loop saves, `context.py` what it learns from the remote cell it runs in.
States that several ranks hold: `distributed.py` puts `torch.distributed.checkpoint` on the store,
`collective.py` saves and restores them from all ranks at once, `sharding.py` tells their format.
torch and numpy are used when the state holds something of theirs, and not imported before.
"""

from __future__ import annotations

from mlcloud.checkpoint.checkpoints import Checkpoints
from mlcloud.checkpoint.context import Notice, RunContext
from mlcloud.checkpoint.keep import Keep
from mlcloud.checkpoint.resumable import Resumable, resumable
from mlcloud.checkpoint.step import CheckpointInfo

__all__ = [
    "CheckpointInfo",
    "Checkpoints",
    "Keep",
    "Notice",
    "Resumable",
    "RunContext",
    "resumable",
]
