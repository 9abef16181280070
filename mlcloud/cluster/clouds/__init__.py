"""The clouds: small classes that launch, list and terminate machines, and say what they can do.

Nothing here imports Ray: a cloud knows machines, the node provider (`cluster/provider.py`) knows
Ray.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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
    return _rented(name, settings)


#: Clouds that machines are bought of: module and class, made of (CloudSettings, offers).
RENTED = {
    "aws": ("mlcloud.cluster.clouds.aws", "AwsCloud"),
    "gcp": ("mlcloud.cluster.clouds.gcp", "GcpCloud"),
    "azure": ("mlcloud.cluster.clouds.azure", "AzureCloud"),
    "kubernetes": ("mlcloud.cluster.clouds.kubernetes", "KubernetesCloud"),
}


def class_of(name: str) -> Callable[..., Cloud]:
    """Raises `UsageError` for a cloud that there is none of."""
    from importlib import import_module

    from mlcloud.errors import UsageError

    if name not in RENTED:
        raise UsageError(f"no cloud is called {name!r}; there are: local, ssh, {', '.join(RENTED)}")
    module, kind = RENTED[name]
    found: Callable[..., Cloud] = getattr(import_module(module), kind)
    return found


def _rented(name: str, settings: dict[str, Any]) -> Cloud:
    """As the head asks it: with its own identity, for the offers that the specification takes."""
    from mlcloud.cluster.specification import Specification
    from mlcloud.cost import catalogue

    _import_here(name)
    make = class_of(name)
    wanted = Specification.model_validate(settings["specification"])
    if name == "kubernetes":
        from mlcloud.cluster.clouds.kubernetes import selling

        sold = selling.offers(wanted)
    else:
        sold = catalogue.offers(name, wanted.node_regions)
    offers = [
        offer
        for offer in sold
        if wanted.allows(offer)
        and (not wanted.nodes or any(group.takes(offer) for group in wanted.nodes))
    ]
    roomy = max(wanted.nodes, key=lambda group: group.disk, default=None)
    told = wanted.settings(roomy, ssh_public_key=settings.get("ssh_public_key"))
    # Who comes in by SSH was settled where `up` ran, and may have changed: the head leaves it.
    network = {name: value for name, value in told.network.items() if name != "ssh_from"}
    return make(replace(told, network=network), offers)


def _import_here(name: str) -> None:
    """The clouds' libraries are imported when they are first used, in a thread of the gateway's,
    and share requests with Ray, which its loop imports meanwhile: two threads that wait for each
    other's modules get halves of them, and Ray could not be imported any more."""
    from importlib import import_module

    for module in ("requests", *(["kubernetes.client"] if name == "kubernetes" else [])):
        import_module(module)
