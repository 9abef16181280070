"""What Ray's own processes do without, because its import costs seconds and serves none of them.

`import ray` imports jsonschema, which looks for packages that check formats. One of these,
rfc3987-syntax (JupyterLab brings it), builds a grammar for international web addresses when it is
imported: 3 of the 4 seconds of CPU that `import ray` took, in each of a cluster's eight processes.
jsonschema goes on without it.

    the gateway           leave_out()
    head, nodes, workers  environment(): a folder in front of their path whose module of that name
                          says that it is not there
    a session's kernel    restored(): as if nothing had been done; its cells may check addresses,
                          and listen where they like (`onlyhere`)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlcloud.cluster import onlyhere

FOLDER = Path(__file__).parent / "left_out"


def leave_out(*more: str) -> None:
    """In this process, from now on: these modules and those of the folder are not there."""
    absent: dict[str, Any] = {name: None for name in (*_names(), *more) if name not in sys.modules}
    sys.modules.update(absent)


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables for a process of Ray's."""
    plain = restored(variables)
    path = [str(FOLDER), *filter(None, [plain.get("PYTHONPATH")])]
    return {**plain, "PYTHONPATH": os.pathsep.join(path)}


def restored(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables for a process in which everything is there again."""
    path = variables.get("PYTHONPATH", "").split(os.pathsep)
    kept = os.pathsep.join(each for each in path if each and each != str(FOLDER))
    rest = {
        name: value for name, value in onlyhere.removed(variables).items() if name != "PYTHONPATH"
    }
    return {**rest, "PYTHONPATH": kept} if kept else rest


def _names() -> list[str]:
    return [path.stem for path in FOLDER.glob("*.py")]
