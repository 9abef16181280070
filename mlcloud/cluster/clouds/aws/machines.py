"""What EC2 lists, as `Instance`s: what was bought comes from the tags, why it ended from EC2.

EC2 goes on listing an instance for about an hour after its end
(https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/terminating-instances.html); it bills until it
leaves `running`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

from mlcloud.cluster.clouds import tags
from mlcloud.cluster.clouds.aws.api import from_tags
from mlcloud.cluster.clouds.base import Instance
from mlcloud.cluster.offers import Market, Offer

ALIVE = ("pending", "running")
UNFINISHED = (*ALIVE, "stopping", "stopped")  # what can still be terminated
PREEMPTED = "preempted"
_MIB = 2**20

# https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_StateReason.html
_REASONS = {
    "Server.SpotInstanceTermination": PREEMPTED,
    "Server.SpotInstanceShutdown": PREEMPTED,
    "Client.UserInitiatedShutdown": "terminated through AWS's API",
    "Client.InstanceInitiatedShutdown": "it shut itself down",
    "Client.InstanceTerminated": "terminated while an image was made of it",
    "Client.VolumeLimitExceeded": "the account's limit on volumes was reached",
    "Client.InvalidSnapshot.NotFound": "its image's snapshot does not exist",
    "Client.InternalError": "it could not start (is its disk's encryption key usable?)",
    "Server.InsufficientInstanceCapacity": "AWS had no capacity to start it",
    "Server.InternalError": "an error of AWS's ended it",
    "Server.ScheduledStop": "AWS retired its hardware",
}
_WHEN = re.compile(r"\((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (?:GMT|UTC)\)")


def instance_of(listed: Mapping[str, Any], offer: Offer) -> Instance:
    """One of EC2's descriptions. `ended_at` is None where EC2 does not date the end, too."""
    carried = from_tags(listed.get("Tags"))
    ended = has_ended(listed)
    return Instance(
        id=str(listed["InstanceId"]),
        node_type=carried.get("ray-user-node-type") or carried.get(tags.NODE_TYPE, ""),
        offer=offer,
        launched_at=_utc(listed["LaunchTime"]),
        ended_at=end_of(listed) if ended else None,
        reason=reason_of(listed) if ended else "",
        tags=carried,
        private_ip=listed.get("PrivateIpAddress") or None,
        public_ip=listed.get("PublicIpAddress") or None,
    )


def has_ended(listed: Mapping[str, Any]) -> bool:
    """Whether it bills no more. A stopped one (by hand: we never stop any) has ended too."""
    return listed["State"]["Name"] not in ALIVE


def reason_of(listed: Mapping[str, Any]) -> str:
    """Why it ended, as a person reads it; `preempted` for what the cloud took back."""
    state = str(listed["State"]["Name"])
    if state in ("stopping", "stopped"):
        return "stopped by hand: its disk goes on billing"
    why = listed.get("StateReason") or {}
    code = str(why.get("Code", ""))
    return _REASONS.get(code) or str(why.get("Message") or code or state)


def end_of(listed: Mapping[str, Any]) -> datetime | None:
    """When it left `running`, if EC2 says so: `User initiated (2026-01-01 12:00:00 GMT)`."""
    found = _WHEN.search(str(listed.get("StateTransitionReason", "")))
    if found is None:
        return None
    return datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=timezone.utc)


def spot_end(request: Mapping[str, Any]) -> datetime | None:
    """When a spot request's instance was ended, by the request's status."""
    status = request.get("Status") or {}
    if str(status.get("Code", "")).startswith("instance-terminated") and status.get("UpdateTime"):
        return _utc(status["UpdateTime"])
    return None


def bought(
    listed: Mapping[str, Any],
    region: str,
    catalogue: Iterable[Offer],
    kinds: Mapping[str, Mapping[str, Any]],
) -> Offer:
    """The offer that an instance was launched for: its price and market from its tags, the rest
    from the catalogue, or from EC2's own description of the type (`kinds`)."""
    carried = from_tags(listed.get("Tags"))
    zone = str(listed["Placement"]["AvailabilityZone"])
    kind = str(listed["InstanceType"])
    spot = listed.get("InstanceLifecycle") == "spot"
    market: Market = "spot" if spot or carried.get(tags.MARKET) == "spot" else "on-demand"
    price = tags.read_price(carried.get(tags.PRICE))
    for offer in catalogue:
        if (offer.zone, offer.instance_type, offer.market) == (zone, kind, market):
            return offer if price is None else replace(offer, usd_per_hour=price)
    facts = kinds.get(kind, {})
    gpus = (facts.get("GpuInfo") or {}).get("Gpus") or [{}]
    return Offer(
        cloud="aws",
        region=region,
        zone=zone,
        instance_type=kind,
        cpus=float((facts.get("VCpuInfo") or {}).get("DefaultVCpus", 1)),
        memory_bytes=int((facts.get("MemoryInfo") or {}).get("SizeInMiB", 0)) * _MIB,
        accelerator=gpus[0].get("Name"),
        accelerator_count=int(gpus[0].get("Count", 0)),
        market=market,
        usd_per_hour=price or Decimal(0),
        simulated=False,
        source="the instance's tags" if price is not None else "not known: the instance has no tag",
        as_of=_utc(listed["LaunchTime"]).date(),
    )


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(timezone.utc) if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
