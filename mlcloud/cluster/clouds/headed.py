"""A cloud as its head sees it: the head is a process here, every other node a machine out there.

    launch(worker) ── record, secrets, node file, bootstrap ──► beyond.launch
    join()         ── the node's join token, once ──► its own token, Ray's address and Ray's token
    heard()        ── heartbeats: who is not heard for `QUIET_S` is looked for out there, which
                      is done now and then anyway

Records are those of the local cloud, in the same folder: the gateway and Ray's autoscaler both
read them, and the head's own is one of them. `beyond` is any `Cloud` that puts `request.bootstrap`
to work on a machine.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import logging
import secrets
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlcloud import __version__
from mlcloud.cluster import bootstrap
from mlcloud.cluster.clouds.base import (
    Cloud,
    CloudWithMachines,
    Instance,
    LaunchRequest,
    Notice,
)
from mlcloud.cluster.clouds.local import HEAD, LocalCloud
from mlcloud.cluster.headspec import HeadSpec
from mlcloud.cluster.offers import Offer
from mlcloud.cluster.records import now, offer_of, plain, write_json
from mlcloud.errors import MLCloudError, UsageError

log = logging.getLogger(__name__)
QUIET_S = 7.0  # two heartbeats, and a slow moment
LOOK_AGAIN_S, LOOK_ANYWAY_S = 3.0, 20.0
BOOT_S = 300.0  # a node that was not heard for so long after its launch is looked for


class Headed(LocalCloud, CloudWithMachines):
    """`beyond`, with the head on this machine. `root` as of `LocalCloud`."""

    def __init__(
        self, root: Path, spec: HeadSpec, beyond: Cloud, certificate: Path, *, watching: bool
    ) -> None:
        super().__init__(root)
        self._watching = watching
        self.spec, self.beyond = spec, beyond
        self.name = beyond.name
        self.address, self.gcs_port = spec.address, spec.gcs_port
        if spec.ray_token:
            self.ray_token = (certificate.parent / spec.ray_token).read_text().strip()
        self._certificate = certificate
        self._joins = root / "joins"
        self._joins.mkdir(exist_ok=True, mode=0o700)
        self._heard: dict[str, float] = {}
        self._looking = threading.Lock()
        self._looked = 0.0

    @property
    def head_offer(self) -> Offer | None:
        """What the head's machine was bought as, if it was."""
        bought = self.spec.settings.get("head")
        return offer_of(bought) if bought else None

    def offers(self) -> list[Offer]:
        return self.beyond.offers()

    def tell(self, spec: HeadSpec, home: Path) -> None:
        """Another specification is in force: what is launched from now on is by this."""
        from mlcloud.cluster import clouds

        beyond = clouds.make(
            spec.cloud, self.root, spec.settings, cluster_id=spec.cluster_id, home=home
        )
        self.spec, self.beyond = spec, beyond

    def free(self, offer: Offer) -> bool:
        return not isinstance(self.beyond, CloudWithMachines) or self.beyond.free(offer)

    # --- launching --------------------------------------------------------------------------------

    def launch(self, offer: Offer, request: LaunchRequest) -> Instance:
        if request.node_type == HEAD:
            return super().launch(offer, request)
        instance = Instance(
            id=request.instance_id or self.new_id(),
            node_type=request.node_type,
            offer=offer,
            launched_at=now(),
            tags=dict(request.tags),
        )
        join = secrets.token_urlsafe(24)
        write_json(self._join_path(instance.id), {"token": join})
        try:
            made = self.beyond.launch(
                offer,
                replace(
                    request,
                    instance_id=instance.id,
                    bootstrap=self._bootstrap(instance, request, join),
                ),
            )
        except BaseException:
            self._join_path(instance.id).unlink(missing_ok=True)
            raise
        # Not before: nobody shall see a node that could not be had. It may ask to join already.
        instance = replace(instance, private_ip=made.private_ip, public_ip=made.public_ip)
        self.records.create(instance, request)
        with self.records.changing(instance.id) as record:
            record["beyond"] = made.id
        return instance

    def _bootstrap(self, instance: Instance, request: LaunchRequest, join: str) -> str:
        record = plain(instance)
        node = {
            "id": record["id"],
            "node_type": record["node_type"],
            "resources": request.resources,
            "labels": request.labels,
            "offer": record["offer"],
            "launched_at": record["launched_at"],
            "join": join,
            "gateway": {
                "url": f"https://{self.spec.address}:{self.spec.port}",
                "certificate": self._certificate.read_text(),
            },
        }
        return bootstrap.worker(
            cluster=self.spec.name,
            cluster_id=self.spec.cluster_id,
            instance=record["id"],
            node=node,
            runtime=self.spec.runtime,
            version=__version__,
        )

    # --- joining ----------------------------------------------------------------------------------

    def join(self, instance_id: str, token: str) -> dict[str, Any] | None:
        """What a node gets for its join token; None for a wrong one, or one that was used; nothing
        yet where it is faster than who launched it."""
        try:
            kept = json.loads(self._join_path(instance_id).read_text())["token"]
        except (OSError, ValueError, KeyError):
            return None
        if not hmac.compare_digest(kept.encode(), token.encode()):
            return None
        if instance_id not in self.records:
            return {}
        settings = json.loads((self.root / "cluster.json").read_text())
        head_only = ("node_ip", "ray_dir", "connection_file", "autoscaling_config", "metadata",
                     "pip_conf")  # fmt: skip
        return {
            "node_token": self.records.secrets_of(instance_id)["node_token"],
            "settings": {
                **{name: value for name, value in settings.items() if name not in head_only},
                "head_ip": self.spec.address,
                "store_url": settings.get("store_url", ""),
            },
        }

    def heard(self, instance_id: str) -> bool:
        """A heartbeat. False for a node that has been given up."""
        if instance_id not in self._heard:
            self._join_path(instance_id).unlink(missing_ok=True)
        self._heard[instance_id] = time.monotonic()
        (self._joins / f"{instance_id}.heard").touch()
        return bool(self.records.read(instance_id)["ended_at"] is None)

    def failed(self, instance_id: str, why: str) -> None:
        """Its bootstrap did, and says why."""
        self._end(instance_id, why)
        threading.Thread(target=self._clear, args=(instance_id, why), daemon=True).start()

    def _join_path(self, instance_id: str) -> Path:
        return self._joins / f"{instance_id}.json"

    # --- watching ---------------------------------------------------------------------------------

    def instances(self) -> list[Instance]:
        found = super().instances()
        self._look_for(found)
        return found

    def _look_for(self, found: list[Instance]) -> None:
        """Where a node is not heard any more, look out there, without waiting for it."""
        if not self._watching:
            return
        at = time.monotonic()
        quiet = [each.id for each in found if each.alive and self._is_quiet(each, at)]
        again = LOOK_AGAIN_S if quiet else LOOK_ANYWAY_S
        if at - self._looked < again or not self._looking.acquire(False):
            return
        self._looked = at
        threading.Thread(target=self._look, args=(quiet,), daemon=True).start()

    def _is_quiet(self, instance: Instance, at: float) -> bool:
        if instance.node_type == HEAD:
            return False
        last = self._heard.get(instance.id)
        if last is None:
            return (now() - instance.launched_at).total_seconds() > BOOT_S
        return at - last > QUIET_S

    def _is_mute(self, instance_id: str) -> bool:
        """Whether it was heard, and is not: as every process of the head can tell."""
        try:
            last = (self._joins / f"{instance_id}.heard").stat().st_mtime
        except OSError:
            return False
        return time.time() - last > QUIET_S * 2 / 3

    def _look(self, quiet: list[str]) -> None:
        try:
            listed = {each.id: each for each in self.beyond.instances()}
            for instance_id in quiet:
                seen = listed.get(self.records.read(instance_id).get("beyond", instance_id))
                if seen is None or not seen.alive:
                    why = seen.reason if seen else "its machine is gone"
                    self._end(instance_id, why)
                    log.info("node %s is lost: %s", instance_id, why)
                    self._clear(instance_id, why)
        except MLCloudError as error:
            log.warning("%s could not be looked at: %s", self.beyond.name, error)
        finally:
            self._looking.release()

    # --- ending -----------------------------------------------------------------------------------

    def terminate(self, instance_id: str, reason: str) -> None:
        if instance_id not in self.records:
            return
        if self.records.read(instance_id)["node_type"] == HEAD:
            super().terminate(instance_id, reason)
            return
        self._end(instance_id, "it is not heard any more" if self._is_mute(instance_id) else reason)
        if self._watching:
            self._clear(instance_id, reason)
        else:  # Ray's autoscaler must not wait for a machine that does not answer
            threading.Thread(target=self._clear, args=(instance_id, reason)).start()

    def _end(self, instance_id: str, reason: str) -> None:
        self.records.end(instance_id, reason)
        self._join_path(instance_id).unlink(missing_ok=True)

    def _clear(self, instance_id: str, reason: str) -> None:
        """Out there too. A machine that cannot be reached ends its node itself: by `dead_man`, or
        when its heartbeat is answered that it was given up."""
        with contextlib.suppress(OSError, ValueError):
            try:
                self.beyond.terminate(
                    self.records.read(instance_id).get("beyond", instance_id), reason
                )
            except MLCloudError as error:
                log.warning("node %s could not be ended: %s", instance_id, error)

    def preempt(self, instance_id: str, seconds: float) -> Notice:
        raise UsageError(f"nodes of {self.beyond.name} cannot be drilled: nobody takes them back")
