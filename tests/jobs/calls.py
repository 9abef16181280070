"""How the tests of jobs call functions, and how long they wait."""

from __future__ import annotations

from typing import Any

import mlcloud
from mlcloud.client.functions import RemoteFunction

WAIT_S = 120.0
OPTIONS = {"max_nodes": "3", "node_idle": "60s", "offer_cooldown": "5s"}  # of a cluster


def remote(function: Any, **options: Any) -> RemoteFunction[Any, Any]:
    made: RemoteFunction[Any, Any] = mlcloud.remote(**{"quiet": True, **options})(function)
    return made
