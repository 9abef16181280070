"""Ray's own programs in a cell: `ray.init()` joins the cluster, which grows for what they ask."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import mlcloud
from mlcloud.client.session import Session
from tests.live import Embedded

pytestmark = pytest.mark.cluster

CELL = """
import os

import ray

@ray.remote
def where():
    return os.environ["RAY_CLOUD_INSTANCE_ID"]

ray.init(logging_level="ERROR")
here = where._function()
labels = {"mlcloud.instance": here}
(mine,) = [each for each in ray.nodes() if labels.items() <= each["Labels"].items()]
# More than this session leaves of its node.
there = ray.get(where.options(num_cpus=mine["Resources"]["CPU"]).remote(), timeout=100)
ray.shutdown()
"""


def test_a_cell_is_a_driver_of_the_cluster(
    cluster: Embedded, session: Callable[..., Session]
) -> None:
    made = session(cpus=1)
    made.run(CELL)
    nodes = {each["id"] for each in cluster.records()}
    assert {made["here"], made["there"]} <= nodes
    assert made["here"] != made["there"]
    assert mlcloud.connect().cluster.status().info.usd > 0
