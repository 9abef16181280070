"""A cluster on Kubernetes from here: brought up, reached, and taken down.

    up    who the head is, its service and policy, its script (a secret), the wheel (config maps)
          ─► RayCluster ─► the operator makes the head's pod ─► its gateway listens
          of a cluster that is there: what differs is its gateway's to apply (`changing`), and all
          of this is told what runs then, for the next head
    down  the gateway saves and ends ─► all that carries the cluster's labels is removed

The head's script is that of any machine (`bootstrap.head`); it travels in a secret, and so do the
token and the certificate, which are made here: whoever may read the secret may use the cluster, and
a second `up`, from anywhere, finds it as it is. No SSH, nothing open to the world.

Neither an operator nor a real cluster was there to run it.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import tempfile
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from mlcloud import __version__
from mlcloud.client.connection import Address
from mlcloud.client.machines import MOST_NODES, settings_of
from mlcloud.client.packages import Packages
from mlcloud.client.packages import of_specification as packages_of
from mlcloud.client.pinned import context
from mlcloud.client.planning import offers_of
from mlcloud.client.portforward import PortForward
from mlcloud.cluster import bootstrap, tls
from mlcloud.cluster.clouds.kubernetes import KubernetesCloud, beside, manifest, waiting
from mlcloud.cluster.headspec import HeadSpec, Runtime
from mlcloud.cluster.offers import Offer
from mlcloud.cluster.specification import ChangeList, Specification, Split, changes
from mlcloud.config import Settings
from mlcloud.environment import index
from mlcloud.environment.wheels import own_wheel
from mlcloud.errors import CloudRefused, Conflict, ConnectionFailed, NoCapacity, NotFound
from mlcloud.store import load_or_create_key

Tell = Callable[[str], None]
#: A pod, once the operator sees its RayCluster; a head, with a node that must be brought for it.
POD_S, HEAD_S = 60.0, 900.0
LOOK_S = 1.0
#: Whether a service of the cluster answers from here.
DIRECT_S = 2.0
_RAY_TOKEN = "ray.token"


@dataclass(frozen=True)
class Kept:
    """What of a cluster outlives its head: in its secret, beside the script."""

    cluster_id: str
    token: str
    ray_token: str
    key: str
    certificate: str
    store_key: bytes
    specification: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return tls.fingerprint(self.certificate)

    def write(self) -> dict[str, str]:
        return {
            "cluster_id": self.cluster_id,
            "token": self.token,
            manifest.TOKEN_KEY: self.ray_token,
            "tls.key": self.key,
            "tls.crt": self.certificate,
            "store.key": b64encode(self.store_key).decode(),
            "specification": json.dumps(self.specification),
        }

    @classmethod
    def read(cls, data: Mapping[str, str]) -> Kept:
        plain = {key: b64decode(text).decode() for key, text in data.items()}
        return cls(
            plain["cluster_id"],
            plain["token"],
            plain[manifest.TOKEN_KEY],
            plain["tls.key"],
            plain["tls.crt"],
            b64decode(plain["store.key"]),
            json.loads(plain["specification"]),
        )


def cloud_of(specification: Specification) -> KubernetesCloud:
    return KubernetesCloud(specification.settings(), offers_of(specification))


# --- up -------------------------------------------------------------------------------------------


def up(
    specification: Specification,
    settings: Settings,
    tell: Tell,
    there: Kept | None = None,
    packages: Packages | None = None,
) -> Kept:
    """A head whose gateway listens, made, or found: `there` is what was `found` of it.

    Raises `CredentialsMissing` before anything is made, `NoCapacity`, `QuotaExceeded` or
    `CloudRefused` for a head that does not come up, with what Kubernetes says; its pod is given
    back then.
    """
    cloud = cloud_of(specification)
    cloud.check()
    head = _head_offer(specification, cloud.offers())
    kept = there or found(specification) or _made(cloud, specification, settings)
    kept = replace(kept, specification=specification.model_dump(mode="json"))
    packages = packages or packages_of(specification)
    _apply(cloud, specification, head, kept, packages, tell)
    try:
        _until_listening(cloud, tell)
    except BaseException:
        tell("the head's pod is given back")
        cloud.release()
        raise
    return kept


def _head_offer(specification: Specification, offers: list[Offer]) -> Offer:
    fitting = [each for each in offers if specification.head.takes(each)]
    if not fitting:
        raise NoCapacity("head: none of the cluster's on-demand nodes has so much: ask for less")
    return min(fitting, key=lambda each: (each.usd_per_hour, each.zone))


def found(specification: Specification) -> Kept | None:
    """What is kept of the cluster of that name in that namespace; None where there is none."""
    cloud = cloud_of(specification)
    cloud.check()
    try:
        there = cloud.api.get("secret", manifest.head_secret(cloud.settings))
    except NotFound:
        return None
    return Kept.read(there["data"])


def _made(cloud: KubernetesCloud, specification: Specification, settings: Settings) -> Kept:
    with tempfile.TemporaryDirectory() as folder:
        key, certificate = Path(folder) / "key", Path(folder) / "certificate"
        address = f"{beside.service_name(cloud.settings)}.{cloud.api.namespace}.svc"
        tls.ensure(key, certificate, address)
        return Kept(
            cluster_id=f"{specification.name}-{secrets.token_hex(4)}",
            token=secrets.token_urlsafe(32),
            ray_token=secrets.token_hex(32),
            key=key.read_text(),
            certificate=certificate.read_text(),
            # Kept here too: nobody could read the store without it.
            store_key=load_or_create_key(settings.key_file_of(specification.store or "")),
            specification={},
        )


def require_same_place(before: Specification, specification: Specification) -> None:
    """Raises `Conflict` where the cluster of that name is elsewhere: it would not be found again
    by the new specification, and went on there."""
    places = ("cloud", "network", "endpoints")
    if any(getattr(before, name) != getattr(specification, name) for name in places):
        nothing = ChangeList(())
        raise Conflict(Split(before, nothing, changes(before, specification)).refusal())


def head_told(specification: Specification) -> dict[str, Any]:
    """What a head that runs is told anew (`respecifying`). The RayCluster may have as many nodes
    before the head asks for them; `up` lowers it afterwards."""
    cloud = cloud_of(specification)
    name = manifest.name(cloud.settings)
    present = cloud.api.get("raycluster", name)["metadata"].get("annotations") or {}
    most = max(int(present.get(manifest.MOST, 0)), _most(specification))
    cloud.api.annotate("raycluster", name, {manifest.MOST: str(most)})
    runtime, _ = runtime_of(specification)
    return {"settings": _head_settings(cloud, specification), "runtime": asdict(runtime)}


def _head_settings(cloud: KubernetesCloud, specification: Specification) -> dict[str, Any]:
    """What its cloud is told at the head (`clouds.make`)."""
    there = {"namespace": cloud.api.namespace}
    network = {key: text for key, text in specification.network.items() if key != "context"}
    told = {**specification.model_dump(mode="json"), "network": {**network, **there}}
    return {"specification": told}


def runtime_of(specification: Specification) -> tuple[Runtime, bytes]:
    """What pods run mlcloud with, and the wheel: the very mlcloud that is here, on an image's Ray.
    An image that has both installs nothing."""
    name, wheel, digest = own_wheel()
    runtime = Runtime(
        requirements=(f"ray[default]=={metadata.version('ray')}",),
        indexes=bool(specification.environment.index_urls),
        wheel=name,
        digest=digest,
        minor=f"{sys.version_info[0]}.{sys.version_info[1]}",
        inherit=True,
        setup=tuple(specification.setup),
    )
    return runtime, wheel


def _apply(
    cloud: KubernetesCloud,
    specification: Specification,
    head: Offer,
    kept: Kept,
    packages: Packages,
    tell: Tell,
) -> None:
    """All of it, what is there already with what differs. The RayCluster comes last: its pod refers
    to the rest."""
    api, settings, now = cloud.api, cloud.settings, datetime.now(timezone.utc)
    runtime, wheel = runtime_of(specification)
    parts = beside.parts(settings, wheel, now)
    script = {manifest.HEAD_SCRIPT: _script(cloud, specification, kept, runtime, packages)}
    for kind, body in beside.account(settings, api.namespace, now):
        api.apply(kind, body)
    for body in parts:
        api.apply("config-map", body)
    api.apply("service", beside.service(settings, now))
    api.apply("network-policy", beside.network_policy(settings, now))
    secret = beside.secret(
        settings, manifest.head_secret(settings), {**kept.write(), **script}, now
    )
    api.apply("secret", secret)
    body = manifest.cluster(
        settings,
        head,
        folder=f"{kept.cluster_id}/head",
        wheel=runtime.wheel,
        parts=[each["metadata"]["name"] for each in parts],
        most=_most(specification),
        now=now,
    )
    api.apply("raycluster", body)
    tell(f"RayCluster {body['metadata']['name']} is in the namespace {api.namespace}")


def _script(
    cloud: KubernetesCloud,
    specification: Specification,
    kept: Kept,
    runtime: Runtime,
    packages: Packages,
) -> str:
    record = {
        "url": "",
        "specification": kept.specification,
        "environment": packages.environment,
        "variables": {},
    }
    spec = HeadSpec(
        name=specification.name,
        cluster_id=kept.cluster_id,
        cloud="kubernetes",
        address="",  # the pod's own, when it has one
        settings=_head_settings(cloud, specification),
        port=manifest.GATEWAY_PORT,
        runtime=runtime,
        gcs_port=manifest.GCS_PORT,
        ray_token=_RAY_TOKEN,
    )
    return bootstrap.head(
        cluster=specification.name,
        cluster_id=kept.cluster_id,
        instance=f"head-{kept.cluster_id}",
        files={
            "head.json": spec.write(),
            "cluster.json": json.dumps(record),
            index.FILE: packages.pip_conf,
            "token": json.dumps(kept.token),
            _RAY_TOKEN: kept.ray_token,
            "tls.key": kept.key,
            "tls.crt": kept.certificate,
            "store.key": kept.store_key,
        },
        variables={
            "MLCLOUD_STORE": specification.store or "",
            "MLCLOUD_PORT": str(manifest.GATEWAY_PORT),
            **settings_of(specification, MOST_NODES),
        },
        runtime=runtime,
        version=__version__,
    )


def _most(specification: Specification) -> int:
    return min(MOST_NODES, sum(group.max for group in specification.nodes) or MOST_NODES)


# --- waiting --------------------------------------------------------------------------------------


def _until_listening(cloud: KubernetesCloud, tell: Tell) -> None:
    name, api = manifest.name(cloud.settings), cloud.api
    began, said = time.monotonic(), ""
    while True:
        waited = time.monotonic() - began
        pods = api.list("pod", f"ray.io/cluster={name},ray.io/node-type=head")
        pods = [each for each in pods if not each["metadata"].get("deletionTimestamp")]
        if not pods:
            found = waiting.refused(_events(cloud, name))
            now = "the operator makes the head's pod" if found is None else str(found)
            if waited > POD_S and found is None:
                found = waiting.Trouble(
                    f"KubeRay's operator made no pod in {POD_S:g} s: does it run, and watch the "
                    f"namespace {api.namespace}? kubectl describe raycluster {name}",
                    True,
                )
        else:
            pod = max(pods, key=lambda each: str(each["metadata"].get("creationTimestamp")))
            if waiting.ready(pod):
                tell("its gateway listens")
                return
            found = waiting.trouble(pod, _events(cloud, pod["metadata"]["name"]))
            now = waiting.progress(pod) if found is None else str(found)
            if found is not None and found.final:
                words = _last_words(cloud, pod["metadata"]["name"])
                found = replace(found, text=f"{found.text}{words}")
        if found is not None and (found.final or waited > HEAD_S):
            raise found.error(f"the head of {name!r} does not come up: {found}")
        if waited > HEAD_S:
            raise CloudRefused(f"the head of {name!r} is not up after {HEAD_S:g} s: {now}")
        if now != said:
            tell(now)
            said = now
        time.sleep(LOOK_S)


def _events(cloud: KubernetesCloud, name: str) -> list[dict[str, Any]]:
    """Those of one object, in the order in which they came."""
    found = cloud.api.list("event", fields=f"involvedObject.name={name}")

    def at(event: Mapping[str, Any]) -> str:
        return str(event.get("lastTimestamp") or event.get("eventTime") or "")

    return sorted(found, key=at)


def _last_words(cloud: KubernetesCloud, pod: str) -> str:
    said = cloud.api.log(pod, previous=True).strip() or cloud.api.log(pod).strip()
    return f": {said.splitlines()[-1]}" if said else ""


# --- reaching -------------------------------------------------------------------------------------


def way(specification: Specification) -> PortForward:
    """Through the API server. Raises `CredentialsMissing`."""
    cloud = cloud_of(specification)
    return PortForward(cloud.api, manifest.name(cloud.settings), manifest.GATEWAY_PORT)


def direct(specification: Specification, token: str, fingerprint: str) -> Address | None:
    """Where this runs in the cluster itself, and its policy lets it through; else None."""
    if "KUBERNETES_SERVICE_HOST" not in os.environ:
        return None
    cloud = cloud_of(specification)
    host = f"{beside.service_name(cloud.settings)}.{cloud.api.namespace}.svc"
    url = f"https://{host}:{manifest.GATEWAY_PORT}"
    try:
        return Address(url, token, context(url, fingerprint, DIRECT_S))
    except ConnectionFailed:
        return None
