"""A training on one rank: the process group around `fn(context)`, and what comes back of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from mlcloud.training.result import TrainResult


def run(
    function: Callable[..., Any], options: dict[str, Any], arguments: dict[str, Any], kept: str
) -> TrainResult:
    """Called on every rank of a gang, at the same time. `kept`: the session's name for the value,
    where that does not come with the result."""
    import torch
    import torch.distributed as dist
    from IPython.core.getipython import get_ipython

    from mlcloud.training.context import TrainContext

    mine = not dist.is_initialized()
    if mine:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        if "RANK" in os.environ:
            dist.init_process_group()
        else:  # one worker, in a session of its own
            store: Any = getattr(dist, "HashStore")()  # noqa: B009  # torch's stubs have no name of it
            dist.init_process_group(store=store, rank=0, world_size=1)
    try:
        context = TrainContext(**options)
        value = function(context, **arguments)
        result = TrainResult(_unwrapped(value), context.step, context.history)
        if (shell := get_ipython()) is not None:
            result.leave(shell.user_ns, kept)
        return result
    finally:
        if mine:
            dist.destroy_process_group()


def _unwrapped(value: Any) -> Any:
    """A model without DDP around it, also where it is one of several things."""
    from torch.nn.parallel import DistributedDataParallel

    if isinstance(value, DistributedDataParallel):
        return value.module
    if type(value) in (list, tuple):
        return type(value)(map(_unwrapped, value))
    if type(value) is dict:
        return {key: _unwrapped(each) for key, each in value.items()}
    return value
