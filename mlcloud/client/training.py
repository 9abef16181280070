"""`mlcloud.train`: a function on as many workers as there are, in one call of this notebook's.

    train(fn, workers=(1, 8)) ─► an elastic session ─► cell: run(fn, …) on all ranks
                              ◄─ rank 0's TrainResult

What happens to the workers meanwhile (notices, growth) makes the cell run again, from the last
committed step (`training/`, `gateway/elastic.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from mlcloud.errors import UsageError

if TYPE_CHECKING:
    from mlcloud.checkpoint import Checkpoints
    from mlcloud.checkpoint.schedule import Every
    from mlcloud.training.result import TrainResult

#: Its nodes are given back so long after it has ended.
IDLE_TIMEOUT = "2m"
MOST_HISTORY = 2**30  # bytes: it always comes, a large value by itself


def train(
    function: Callable[..., Any],
    workers: int | tuple[int, int] = (1, 4),
    *,
    gpu: str | None = None,
    cpus: float | None = None,
    memory: str | None = None,
    market: str | None = None,
    session: str | None = None,
    every: Every = "auto",
    checkpoints: Checkpoints | None = None,
    idle_timeout: str | None = None,
    timeout: str | None = None,
    max_cost: str | float | Decimal | None = None,
    quiet: bool = False,
    **arguments: Any,
) -> TrainResult:
    """Run `function(context, **arguments)` on every worker, and wait for it.

    `workers` is a number, or the fewest and the most: then it begins with those that can be had,
    goes on with fewer when one gets a notice or is lost, and with more when there is room. `gpu`,
    `cpus`, `memory` and `market` are each worker's, as of `mlcloud.session`. `context`
    (`mlcloud.training.context.TrainContext`) has `rank`, `world_size`, `wrap(model)`,
    `batches(dataset, global_batch=…, state=…)`, `backward(loss)`, `report(loss=…)` and
    `checkpoints`. `every` is as of `mlcloud.resumable`; `checkpoints`: a series of your own, with
    which a later call goes on.

    Of the result (`TrainResult`: `value`, `steps`, `history`), `value` is what rank 0 returned:
    a model that `wrap` made DDP without that around it, a `RemoteValue` for what is large or cannot
    travel, such as a model in shards.

    Raises what the function raised, `UsageError` for what cannot be, and `NoSuchResources` where
    the cluster has no such machines.
    """
    from mlcloud.client.api import default
    from mlcloud.client.functions import call_text
    from mlcloud.client.session import main_namespace
    from mlcloud.training.run import run
    from mlcloud.units import parse_duration

    if not callable(function):
        raise UsageError(f"mlcloud.train: {type(function).__name__} is no function")
    range_given = isinstance(workers, tuple)
    fewest, most = workers if isinstance(workers, tuple) else (workers, workers)
    if fewest < 1:
        raise UsageError(f"mlcloud.train: workers={workers!r}; it takes one at least")
    given = {"gpu": gpu, "cpus": cpus, "memory": memory, "market": market}
    wanted: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    wanted["idle_timeout"] = idle_timeout or IDLE_TIMEOUT
    client = default()
    shape = {**wanted, "workers": f"{fewest}-{most}"}
    chosen = client.session(
        session or client.name_for(shape),
        workers=(fewest, most) if range_given else most,
        **wanted,
    )
    options = {"most": most, "every": every, "checkpoints": checkpoints, "elastic": range_given}
    kept = f"_mlcloud_value_{uuid4().hex[:8]}"
    call = (getattr(function, "local", function), options, arguments, kept)
    code, temporary, result = call_text(run, call, {}, main_namespace())
    seconds = None if timeout is None else parse_duration(timeout).total_seconds()
    found: TrainResult = chosen.call(
        code,
        temporary,
        result,
        timeout=seconds,
        max_cost=max_cost,
        on_preempt="rerun",
        quiet=quiet,
        max_return=MOST_HISTORY,
    )
    if found.left:
        taken = f"{result}_taken"
        found.value = chosen.call(f"{taken} = {kept}\ndel {kept}", {}, taken, quiet=True)
        found.left = False
    return found
