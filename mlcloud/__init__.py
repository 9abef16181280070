"""mlcloud: a notebook cell that runs on a cloud GPU, costs only while it runs, and cannot be lost.

The public names, loaded when first used: `import mlcloud` imports neither Ray nor torch, nor
anything else that takes time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mlcloud import environment as environment
    from mlcloud.checkpoint import Checkpoints as Checkpoints
    from mlcloud.checkpoint import Keep as Keep
    from mlcloud.checkpoint.resumable import resumable as resumable
    from mlcloud.client.api import advise as advise
    from mlcloud.client.api import attach as attach
    from mlcloud.client.api import connect as connect
    from mlcloud.client.api import cost as cost
    from mlcloud.client.api import jobs as jobs
    from mlcloud.client.api import session as session
    from mlcloud.client.api import sessions as sessions
    from mlcloud.client.automl import automl as automl
    from mlcloud.client.cluster import Cluster as Cluster
    from mlcloud.client.functions import remote as remote
    from mlcloud.client.planning import plan as plan
    from mlcloud.client.show import show as show
    from mlcloud.client.sweeps import sweep as sweep
    from mlcloud.client.training import train as train
    from mlcloud.cost.budgets import Budget as Budget
    from mlcloud.magics import load_ipython_extension as load_ipython_extension
    from mlcloud.magics import unload_ipython_extension as unload_ipython_extension
    from mlcloud.store.mounts import data as data
    from mlcloud.sweeps.breeding import Breeding as Breeding
    from mlcloud.sweeps.reporting import report as report
    from mlcloud.sweeps.search import Asha as Asha
    from mlcloud.widgets.loop import progress as progress

_PUBLIC = {
    "Asha": "mlcloud.sweeps.search",
    "Breeding": "mlcloud.sweeps.breeding",
    "Budget": "mlcloud.cost.budgets",
    "Checkpoints": "mlcloud.checkpoint",
    "Cluster": "mlcloud.client.cluster",
    "Keep": "mlcloud.checkpoint",
    "resumable": "mlcloud.checkpoint",
    "advise": "mlcloud.client.api",
    "attach": "mlcloud.client.api",
    "automl": "mlcloud.client.automl",
    "connect": "mlcloud.client.api",
    "cost": "mlcloud.client.api",
    "data": "mlcloud.store.mounts",
    "environment": "mlcloud.environment",
    "jobs": "mlcloud.client.api",
    "plan": "mlcloud.client.planning",
    "progress": "mlcloud.widgets.loop",
    "report": "mlcloud.sweeps.reporting",
    "session": "mlcloud.client.api",
    "sessions": "mlcloud.client.api",
    "show": "mlcloud.client.show",
    "remote": "mlcloud.client.functions",
    "sweep": "mlcloud.client.sweeps",
    "train": "mlcloud.client.training",
    "load_ipython_extension": "mlcloud.magics",
    "unload_ipython_extension": "mlcloud.magics",
}

__all__ = [
    "Asha",
    "Breeding",
    "Budget",
    "Checkpoints",
    "Cluster",
    "Keep",
    "advise",
    "attach",
    "automl",
    "connect",
    "cost",
    "data",
    "environment",
    "jobs",
    "plan",
    "progress",
    "remote",
    "report",
    "resumable",
    "session",
    "sessions",
    "show",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    module = _PUBLIC.get(name)
    if module is None:
        raise AttributeError(f"module 'mlcloud' has no attribute {name!r}")
    found = import_module(module)
    value = found if module == f"{__name__}.{name}" else getattr(found, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
