"""Machines that you own: nothing is bought, they are only used, over SSH.

    launch     runs the bootstrap there; who is unreachable or in use has no capacity
    instances  asks the machines in use whether the node they were given still runs, and clears
               those whose node was given up while they could not be reached
    terminate  ends everything of the node there, found by its mark, and removes its folder

Each machine is one offer at the price that its owner names. Which node is on which machine is
noted under `root/machines`, one small file each, so that every process of the head knows it.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from mlcloud.cluster import bootstrap, ssh
from mlcloud.cluster.clouds.base import (
    Cloud,
    CloudWithCredentials,
    CloudWithMachines,
    Instance,
    LaunchRequest,
)
from mlcloud.cluster.headspec import Machine
from mlcloud.cluster.offers import Offer
from mlcloud.cluster.records import now, write_json
from mlcloud.errors import CloudRefused, CredentialsMissing, MLCloudError, NoCapacity

log = logging.getLogger(__name__)
LOOK_S, END_S, LAUNCH_S = 4, 40.0, 600.0


class SSHCloud(Cloud, CloudWithCredentials, CloudWithMachines):
    """`machines`, reached with `known_hosts` and their keys (`key` where one names none)."""

    name = "ssh"

    def __init__(
        self,
        root: Path,
        machines: Sequence[Machine],
        *,
        cluster_id: str,
        known_hosts: Path,
        key: Path | None = None,
        jump: str | None = None,
        pinned: bool = False,
    ) -> None:
        self._claims = root / "machines"
        self._claims.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.machines = {each.host: each for each in machines}
        self._cluster_id = cluster_id
        self._known_hosts, self._key = known_hosts, key
        self._jump, self._pinned = jump, pinned

    def target(self, host: str) -> ssh.Target:
        machine = self.machines[host]
        return ssh.Target(
            # the head reaches its machines as the nodes do
            machine.private if self._pinned else machine.host,
            machine.user,
            self._known_hosts,
            port=machine.port,
            key=Path(machine.key).expanduser() if machine.key else self._key,
            jump=self._jump,
            sudo=machine.sudo,
            pinned=self._pinned,
        )

    def check(self) -> None:
        import shutil

        if shutil.which("ssh") is None:
            raise CredentialsMissing("`ssh` is not installed: install OpenSSH's client")

    def offers(self) -> list[Offer]:
        return [offer_of(each) for each in self.machines.values()]

    def free(self, offer: Offer) -> bool:
        return not self._path(offer.zone).exists()

    # --- life of an instance ----------------------------------------------------------------------

    def launch(self, offer: Offer, request: LaunchRequest) -> Instance:
        assert request.instance_id, "its bootstrap names it"
        machine = self.machines.get(offer.zone)
        if machine is None:
            raise NoCapacity(f"{offer.zone} is none of this cluster's machines any more")
        instance = Instance(
            id=request.instance_id,
            node_type=request.node_type,
            offer=offer,
            launched_at=now(),
            tags=dict(request.tags),
            private_ip=machine.private,
            public_ip=machine.host,
        )
        claim = self._path(machine.host)
        try:
            # Created by one process only; whoever finds it there goes on to the next machine.
            with open(claim, "x") as file:
                json.dump({"id": instance.id, "at": instance.launched_at.isoformat()}, file)
        except FileExistsError:
            held = self._claim(machine.host).get("id", "another node")
            raise NoCapacity(f"in use by {held} of this cluster") from None
        try:
            said = ssh.run(self.target(machine.host), request.bootstrap, timeout=LAUNCH_S)
        except CredentialsMissing as error:  # for this machine: the others may let us in
            claim.unlink(missing_ok=True)
            raise CloudRefused(str(error)) from error
        except BaseException:
            claim.unlink(missing_ok=True)
            raise
        pid = int(said.split()[-1]) if said.split() and said.split()[-1].isdigit() else None
        write_json(claim, {**self._claim(machine.host), "pid": pid, "node_type": request.node_type})
        return replace(instance, pid=pid)

    def instances(self) -> list[Instance]:
        """The machines in use, as they say. One that does not answer has ended, for all we know."""
        claims = {host: self._claim(host) for host in self.machines}
        held = {host: claim for host, claim in claims.items() if claim.get("pid")}
        if not held:
            return []
        with ThreadPoolExecutor(min(len(held), 16)) as pool:
            found = list(pool.map(self._look, held, held.values()))
        return [each for each in found if each is not None]

    def _look(self, host: str, claim: dict[str, Any]) -> Instance | None:
        if claim.get("lost"):
            with contextlib.suppress(MLCloudError):
                self._clear_claimed(host, claim, replace(self.target(host), connect_s=LOOK_S))
            return None
        instance = Instance(
            id=claim["id"],
            node_type=claim.get("node_type", ""),
            offer=offer_of(self.machines[host]),
            launched_at=datetime.fromisoformat(claim["at"]),
            pid=claim["pid"],
            private_ip=self.machines[host].private,
            public_ip=host,
        )
        script = (
            f"grep -qz -- '^{bootstrap.MARK}={claim['id']}$' /proc/{claim['pid']}/environ "
            f"2>/dev/null && echo runs || tail -n 1 {bootstrap.ROOT}/{self._cluster_id}/"
            f"{claim['id']}/node.log 2>/dev/null"
        )
        try:
            quick = replace(self.target(host), connect_s=LOOK_S)
            said = ssh.run(quick, script, timeout=2 * LOOK_S).strip()
        except MLCloudError as error:
            return replace(instance, ended_at=now(), reason=str(error))
        if said == "runs":
            return instance
        return replace(instance, ended_at=now(), reason=said or "its agent ended")

    def terminate(self, instance_id: str, reason: str) -> None:
        """Raises `NoCapacity` where the machine cannot be reached: its node ends itself then, when
        nobody answers its heartbeats, and the machine is free when it has been cleared."""
        for host in self.machines:
            claim = self._claim(host)
            if claim.get("id") != instance_id:
                continue
            # Noted first: whoever dies meanwhile, the machine is cleared before its next node.
            claim |= {"lost": reason or "ended"}
            write_json(self._path(host), claim)
            self._clear_claimed(host, claim, self.target(host))

    def _clear_claimed(self, host: str, claim: dict[str, Any], target: ssh.Target) -> None:
        self._clear(target, claim["id"])
        if self._claim(host).get("id") == claim["id"]:
            self._path(host).unlink(missing_ok=True)

    def _clear(self, target: ssh.Target, instance_id: str) -> None:
        script = bootstrap.ending(
            bootstrap.MARK,
            instance_id,
            folders=f"{self._cluster_id}/{instance_id}",
            claims=f"^{instance_id} ",
        )
        ssh.run(target, script, timeout=END_S)

    def _path(self, host: str) -> Path:
        return self._claims / f"{host}.json"

    def _claim(self, host: str) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            found: dict[str, Any] = json.loads(self._path(host).read_text())
            return found
        return {}


def offer_of(machine: Machine) -> Offer:
    """At its owner's price. Nobody takes it back, so it is on demand."""
    accelerator, count = machine.gpu or (None, 0)
    return Offer(
        cloud="ssh",
        region=machine.region,
        zone=machine.host,
        instance_type=_kind(machine),
        cpus=machine.cpus,
        memory_bytes=machine.memory,
        accelerator=accelerator,
        accelerator_count=count,
        market="on-demand",
        usd_per_hour=Decimal(machine.usd_per_hour),
        simulated=False,
        source="named by the machine's owner",
        as_of=date.today(),
    )


def _kind(machine: Machine) -> str:
    if machine.gpu:
        return f"{machine.gpu[0]}:{machine.gpu[1]}"
    return "1 CPU" if machine.cpus == 1 else f"{machine.cpus:g} CPUs"
