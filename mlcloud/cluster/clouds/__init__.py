"""The clouds: small classes that launch, list and terminate machines, and say what they can do.

Nothing here imports Ray: a cloud knows machines, the node provider (`cluster/provider.py`) knows
Ray.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlcloud.cluster.clouds.base import Cloud
    from mlcloud.cluster.clouds.local import LocalCloud


def at_head(
    root: Path, head_file: str | Path | None = None, *, watching: bool = False
) -> LocalCloud:
    """The cloud whose records are under `root`: that of `head.json`, or the local one.

    `watching`: this process looks for nodes that are not heard any more.
    """
    from mlcloud.cluster.clouds.local import LocalCloud

    if head_file is None:
        return LocalCloud(root)
    from mlcloud.cluster.clouds.headed import Headed
    from mlcloud.cluster.headspec import HeadSpec

    spec, home = HeadSpec.read(Path(head_file)), Path(head_file).parent
    beyond = make(spec.cloud, root, spec.settings, cluster_id=spec.cluster_id, home=home)
    return Headed(root, spec, beyond, home / "tls.crt", watching=watching)


def make(name: str, root: Path, settings: dict[str, Any], *, cluster_id: str, home: Path) -> Cloud:
    """The cloud of this name. `settings` are its own; files that they name are under `home`."""
    if name == "ssh":
        from mlcloud.cluster.clouds.ssh import SSHCloud
        from mlcloud.cluster.headspec import machine_of

        return SSHCloud(
            root,
            [machine_of(each) for each in settings["machines"]],
            cluster_id=cluster_id,
            known_hosts=home / settings["known_hosts"],
            key=home / settings["key"],
            pinned=True,
        )
    from mlcloud.errors import UsageError

    raise UsageError(f"no cloud is called {name!r}; there are: local, ssh")
