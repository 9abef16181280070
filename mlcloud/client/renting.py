"""A head on a cloud: bought, waited for, and given back with all that its cluster made there.

    up    offers for the head, cheapest first ─► Cloud.launch ─► an address ─► sshd answers
              └─► a cluster of one machine, from here on as one of your own (`launching`)
    down  the gateway ends its nodes ─► everything with the cluster's tags is removed

The machine gets the cluster's public key, and a script without a secret that ends it if nobody
makes it a head, or nothing of mlcloud's runs there any more. What the gateway needs goes over SSH,
to a machine that lets in this computer's address alone. Workers are bought by the head itself, with
the rights of its own identity in the cloud.

None of it was run against a real cloud.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mlcloud.client.machines import SSHCluster, settings_of
from mlcloud.client.planning import offers_of
from mlcloud.client.residency import require_store
from mlcloud.cluster import bootstrap, clouds, ssh
from mlcloud.cluster.clouds import reach
from mlcloud.cluster.clouds.base import (
    Cloud,
    CloudWithCredentials,
    CloudWithLeftovers,
    Instance,
    LaunchRequest,
)
from mlcloud.cluster.headspec import Machine, Runtime
from mlcloud.cluster.offers import Offer
from mlcloud.cluster.records import plain
from mlcloud.cluster.specification import Specification
from mlcloud.errors import CloudRefused, ConnectionFailed, MLCloudError, NoCapacity, UsageError

Tell = Callable[[str], None]
ADDRESS_S, SSHD_S, SWEEP_S = 180.0, 300.0, 300.0
DESERTED_S = 1800.0  # a head on which nothing of ours has run for so long ends
LOOK_S = 3.0
TRIES = 8  # of offers for the head
HEAD = "head"
# Ubuntu's images have a Python without the part that makes environments.
PYTHON = (
    "python3 -m venv --help >/dev/null 2>&1 && python3 -c 'import ensurepip' 2>/dev/null || "
    "{ apt-get update -qq && apt-get install -y -qq python3-venv; }"
)


def cloud_from_here(specification: Specification, public_key: str | None = None) -> Cloud:
    """The specification's cloud, with the rights of who sits here."""
    settings = specification.settings(ssh_public_key=public_key)
    if public_key is not None:
        network = {"ssh_from": reach.ME, **settings.network}
        # Looked up here: a machine in the cloud that asked would find its own.
        known = reach.ssh_from(network, settings.endpoints.get("checkip", reach.CHECKIP))
        settings = replace(settings, network={**network, "ssh_from": ",".join(known)})
    return clouds.class_of(specification.cloud)(settings, offers_of(specification))


def rent(specification: Specification, folder: Path, tell: Tell) -> SSHCluster:
    """A running head as a cluster of one machine. `folder` keeps the cluster's key.

    Raises `CredentialsMissing` before anything is bought, `NoCapacity` where no head could be had,
    `ConnectionFailed` for one that does not let us in; what was bought now is given back then.
    """
    public_key = ssh.make_key(folder / "id_ed25519", f"mlcloud cluster {specification.name}")
    cloud = cloud_from_here(specification, public_key)
    if isinstance(cloud, CloudWithCredentials):
        cloud.check()
    require_store(specification, tell)
    running = _running(cloud)
    if running is not None and (prepare := getattr(cloud, "prepare", None)):
        prepare(running.offer.region)  # this computer may have another address than it had then
    head = running or _bought(specification, cloud, tell)
    try:
        head = _with_address(cloud, head, tell)
        machine = _machine(specification, head, folder)
        if running is None:  # its address may have been another's before
            ssh.forget(folder / "known_hosts", machine.host)
        _until_sshd(machine, folder, tell)
    except BaseException:
        if running is None:  # else it is somebody's cluster: out of reach from here, no more
            tell("the head is given back")
            with contextlib.suppress(MLCloudError):
                cloud.terminate(head.id, "it did not come up")
        raise
    return as_cluster(specification, machine, public_key, head.offer)


def as_cluster(
    specification: Specification, head: Machine, public_key: str, offer: Offer | None = None
) -> SSHCluster:
    """A rented head as a cluster of one machine, which launches by this specification. `offer`:
    what the head is, where it does not know that yet; it bills too."""
    told = specification.model_dump(mode="json")
    return SSHCluster(
        name=specification.name,
        machines=(head,),
        store=specification.store or "",
        runtime=Runtime(
            indexes=bool(specification.environment.index_urls),
            setup=(PYTHON, *specification.setup),
        ),
        settings=settings_of(specification, sum(group.max for group in specification.nodes)),
        specification=told,
        cloud=specification.cloud,
        cloud_settings={
            "specification": told,
            "ssh_public_key": public_key,
            **({"head": plain(offer)} if offer is not None else {}),
        },
    )


def _running(cloud: Cloud) -> Instance | None:
    """The head of an `up` that was broken off."""
    heads = [each for each in cloud.instances() if each.alive and each.node_type == HEAD]
    return heads[0] if heads else None


def _bought(specification: Specification, cloud: Cloud, tell: Tell) -> Instance:
    tried = []
    script = bootstrap.deserted(specification.name, DESERTED_S)
    for offer in _heads(specification, cloud.offers())[:TRIES]:
        tell(f"asking for a head: {offer}")
        request = LaunchRequest(HEAD, {"CPU": 0}, bootstrap=script)
        try:
            return cloud.launch(offer, request)
        except NoCapacity as error:
            tell(str(error))
            tried.append(f"{offer.zone}: {error}")
    raise NoCapacity(
        f"no head for {specification.name!r} could be had: {'; '.join(tried) or 'nothing fits'}"
    )


def _heads(specification: Specification, offers: Iterable[Offer]) -> list[Offer]:
    fitting = [o for o in offers if specification.allows(o) and specification.head.takes(o)]
    return sorted(fitting, key=lambda each: (each.usd_per_hour, each.zone))


def _with_address(cloud: Cloud, head: Instance, tell: Tell) -> Instance:
    until = time.monotonic() + ADDRESS_S
    while True:
        seen = next((each for each in cloud.instances() if each.id == head.id), head)
        if not seen.alive:
            raise CloudRefused(f"the head ended while it started: {seen.reason}")
        if seen.public_ip or seen.private_ip:
            tell(f"the head has the address {seen.public_ip or seen.private_ip}")
            return seen
        if time.monotonic() > until:
            raise ConnectionFailed(f"the head {head.id} got no address in {ADDRESS_S:.0f} s")
        time.sleep(LOOK_S)


def _machine(specification: Specification, head: Instance, folder: Path) -> Machine:
    user = specification.ssh.user
    return Machine(
        host=head.public_ip or head.private_ip or "",
        cpus=head.offer.cpus,
        memory=head.offer.memory_bytes,
        usd_per_hour=str(head.offer.usd_per_hour),
        user=user,
        key=str(folder / "id_ed25519"),
        address=head.private_ip or "",
        sudo=user != "root",
        region=head.offer.region,
    )


def _until_sshd(machine: Machine, folder: Path, tell: Tell) -> None:
    target = ssh.Target(
        machine.host,
        machine.user,
        folder / "known_hosts",
        port=machine.port,
        key=Path(machine.key or ""),
    )
    until, last = time.monotonic() + SSHD_S, ""
    tell("waiting until it boots")
    while time.monotonic() < until:
        try:
            ssh.run(target, "exit 0", timeout=30)
            return
        except MLCloudError as error:  # cloud-init may not have let the key in yet
            last = str(error)
        time.sleep(min(LOOK_S, max(0.0, until - time.monotonic())))
    raise ConnectionFailed(
        f"the head at {machine.host} did not let us in within {SSHD_S:.0f} s: {last}. Is this "
        "computer's address the one that network.ssh_from names, and is the way there open?"
    )


# --- the end --------------------------------------------------------------------------------------


def sweep(specification: Any, tell: Tell) -> int:
    """Remove everything of the cluster that its cloud still has; how much there was.

    Raises `CloudRefused` with what is left after `SWEEP_S`.
    """
    cloud = cloud_from_here(Specification.model_validate(specification))
    if not isinstance(cloud, CloudWithLeftovers):
        raise UsageError(f"what is left on {cloud.name} cannot be found from here")
    until, removed = time.monotonic() + SWEEP_S, 0
    while True:
        found = cloud.leftovers(datetime.now(timezone.utc))
        problems = []
        for each in found:
            try:
                cloud.remove(each)
            except MLCloudError as error:  # it may wait for another to be gone
                problems.append(f"{each.kind} {each.id}: {error}")
                continue
            removed += 1
            tell(f"{each.kind} {each.id} is removed")
        if not found or (not problems and not cloud.leftovers(datetime.now(timezone.utc))):
            return removed
        if time.monotonic() > until:
            raise CloudRefused(
                f"{len(problems) or len(found)} things are left; `mlcloud gc FILE --remove` tries "
                f"again: {'; '.join(problems) or ', '.join(each.id for each in found)}"
            )
        time.sleep(LOOK_S)
