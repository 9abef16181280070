"""What a cluster is to be: from Python, from `cluster.yaml`, checked, compared, written again.

specify(name="gpus", cloud="aws", …)   load("cluster.yaml")
              └────────► Specification ◄────────┘        all problems at once, with the fix
    check(it, offers)     types, regions, GPUs that are not sold, with the nearest
    changes(old, new)     what differs, and what that does to a running cluster
    split(old, new)       what of it a running cluster takes up, and what it refuses
    to_yaml(it), schema() for files and editors
"""

from mlcloud.cluster.specification.changes import (
    OTHER_LOCK,
    Change,
    ChangeList,
    Split,
    changes,
    split,
)
from mlcloud.cluster.specification.check import Catalogue, check
from mlcloud.cluster.specification.document import from_yaml, load, schema, to_yaml
from mlcloud.cluster.specification.model import Specification, specify
from mlcloud.cluster.specification.parts import Head, Machine, Mount, NodeGroup
from mlcloud.cluster.specification.problems import Problem
from mlcloud.cluster.specification.values import Limit, Source

__all__ = [
    "OTHER_LOCK",
    "Catalogue",
    "Change",
    "ChangeList",
    "Head",
    "Limit",
    "Machine",
    "Mount",
    "NodeGroup",
    "Problem",
    "Source",
    "Specification",
    "Split",
    "changes",
    "check",
    "from_yaml",
    "load",
    "schema",
    "specify",
    "split",
    "to_yaml",
]
