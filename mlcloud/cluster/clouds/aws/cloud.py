"""AWS as a cloud: offers become EC2 instances, and everything that was made can be found again.

    launch ─► look up image, subnet, group (once a region; the head's launch makes what is missing)
           ─► body ─► Ray's AWSNodeProvider ─► RunInstances, one token however often it is asked

`settings.network`, all optional: `vpc`, `subnet` and `security_group` (ids, separated by commas),
`key_pair`, `instance_profile` and `worker_instance_profile` (names; empty: none), `public_ip`
(`head`, `all`, `none`; otherwise the subnet's own setting: a default VPC has no other way out),
`ssh_from` (addresses, CIDRs, `me`).
`settings.endpoints`: `ec2`, `iam`, `ssm`, `sts`, `service-quotas`, `checkip`.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from mlcloud.cluster.clouds import reach, tags
from mlcloud.cluster.clouds.aws import body as bodies
from mlcloud.cluster.clouds.aws import images, machines, names
from mlcloud.cluster.clouds.aws import quotas as quota_rules
from mlcloud.cluster.clouds.aws.api import Api, as_filters, from_tags
from mlcloud.cluster.clouds.aws.identity import Identity
from mlcloud.cluster.clouds.aws.leftovers import Leftovers
from mlcloud.cluster.clouds.aws.network import Network, ssh_sources
from mlcloud.cluster.clouds.aws.quotas import Quota
from mlcloud.cluster.clouds.aws.refusals import Errand, code_of, message_of, passing
from mlcloud.cluster.clouds.aws.through_ray import Launcher
from mlcloud.cluster.clouds.base import (
    Cloud,
    CloudSettings,
    CloudThatPlans,
    CloudWithCredentials,
    CloudWithLeftovers,
    Instance,
    LaunchRequest,
    Leftover,
)
from mlcloud.cluster.clouds.local import HEAD
from mlcloud.cluster.offers import Offer
from mlcloud.cluster.records import now
from mlcloud.errors import UsageError

ATTEMPTS = 7
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 20.0
#: EC2 may not list for a while what it has just launched.
LISTED_WITHIN = timedelta(minutes=5)


class AwsCloud(Cloud, CloudWithCredentials, CloudThatPlans, CloudWithLeftovers):
    """EC2 in `settings.regions`, selling `offers`.

    `buckets`: the nodes' roles may use these. Default: that of the cluster's store, if it is on S3.
    It may be used from several threads.
    """

    name = "aws"

    def __init__(
        self,
        settings: CloudSettings,
        offers: Iterable[Offer],
        *,
        buckets: Iterable[str] | None = None,
        now: Callable[[], datetime] = now,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.settings = settings
        self.api = Api(settings)
        self._offers = [offer for offer in offers if offer.region in settings.regions]
        self._now, self._sleep = now, sleep
        self._network = Network(self.api, settings, now)
        stored = names.buckets(settings.store) if buckets is None else tuple(buckets)
        self._identity = Identity(self.api, settings, stored, now)
        self._leftovers = Leftovers(self.api, settings)
        self._leftovers.sleep = sleep
        self._lock = threading.Lock()
        self._launchers: dict[str, tuple[Any, Launcher]] = {}
        self._images: dict[tuple[str, images.Choice], images.Image] = {}
        self._kinds: dict[str, Mapping[str, Any]] = {}
        self._unlisted: dict[str, Instance] = {}  # launched here, not seen in a listing yet
        self._ended: dict[str, tuple[datetime, str]] = {}  # ended here, or first seen ended then
        self._where: dict[str, tuple[str, str]] = {}  # instance: region, spot request

    # --- before anything costs money --------------------------------------------------------------

    def offers(self) -> list[Offer]:
        return self._offers

    def check(self) -> None:
        if not self.settings.regions:
            raise UsageError("no region is allowed: name one at least by `regions`")
        region = self.settings.regions[0]
        with self.api.telling(Errand("asking who we are", region)):
            self.api.check_regions()
            ssh_sources(self.settings)
            reach.public_ip(self.settings.network, default="")
            self.api.client("sts", region).get_caller_identity()

    def configuration(self, offer: Offer, request: LaunchRequest) -> dict[str, Any]:
        """RunInstances' body, as it is sent. What only AWS knows and was not asked for yet is
        written as `subnet-of-<zone>`, `group-<name>` and, as AWS itself writes it,
        `resolve:ssm:<parameter>`. The times in the tags are those of the call."""
        self.api.allow(offer.region)
        chosen = images.choice(self.settings.image, offer)
        image = self._images.get((offer.region, chosen), images.Image(str(chosen)))
        subnet, groups = self._network.known(offer)
        found = bodies.Found(image, subnet, groups, self._profile(request), self._identity.key())
        return bodies.on_the_wire(bodies.body(self.settings, offer, request, found, self._now()))

    def quotas(self, region: str) -> dict[str, Quota]:
        """The account's quotas on vCPUs in `region`, by code (`quotas.lacking` compares)."""
        with self.api.telling(Errand("reading the quotas", region)):
            client = self.api.client("service-quotas", region)
            listed = self.api.pages(client, "list_service_quotas", "Quotas", ServiceCode="ec2")
            return quota_rules.read(listed, region)

    def prepare(self, region: str) -> None:
        """Make the security group, key and roles that nodes in `region` need, where they are not
        there. A head's launch does it for its own region; a head itself may make none of them."""
        with self.api.telling(Errand("preparing", region)):
            self._made(region, profiles=True)

    # --- launching --------------------------------------------------------------------------------

    def launch(self, offer: Offer, request: LaunchRequest) -> Instance:
        self.api.allow(offer.region)
        request = bodies.named(request)
        errand = self._errand(offer)
        with self.api.telling(errand):
            described = self._launched(offer, request, again=True)
        instance = machines.instance_of(described, offer)
        with self._lock:
            self._unlisted[instance.id] = instance
            self._remember(described, offer.region)
        return instance

    def _launched(self, offer: Offer, request: LaunchRequest, *, again: bool) -> dict[str, Any]:
        from botocore.exceptions import ClientError

        found = self._found(offer, request)
        body = bodies.body(self.settings, offer, request, found, self._now())
        try:
            return self._launcher(offer.region).launch(body)
        except ClientError as error:
            code = code_of(error)
            if code == "IdempotentParameterMismatch":
                # Asked for under this token before, a moment ago: the tags told another time.
                earlier = self._by_token(offer.region, body["ClientToken"])
                if earlier is not None:
                    return earlier
            if code.endswith(".NotFound") and again:
                # A subnet, group, key or image that was looked up is gone: look again, once.
                self._network.forget(offer.region)
                self._identity.forget(offer.region)
                with self._lock:
                    self._images.clear()
                return self._launched(offer, request, again=False)
            raise

    def _found(self, offer: Offer, request: LaunchRequest) -> bodies.Found:
        chosen = images.choice(self.settings.image, offer)
        if (offer.region, chosen) not in self._images:
            image = images.find(self.api, offer.region, chosen)
            with self._lock:
                self._images[offer.region, chosen] = image
        subnet = self._network.subnet(offer)
        groups = self._made(offer.region, profiles=request.node_type == HEAD)
        image = self._images[offer.region, chosen]
        return bodies.Found(image, subnet, groups, self._profile(request), self._identity.key())

    def _made(self, region: str, *, profiles: bool) -> tuple[str, ...]:
        if profiles:
            self._identity.make_profiles(region)
        self._identity.make_key(region)
        return self._network.groups(region)

    def _profile(self, request: LaunchRequest) -> str | None:
        return self._identity.profile(head=request.node_type == HEAD)

    def _launcher(self, region: str) -> Launcher:
        client = self.api.client("ec2", region, once=True)
        with self._lock:
            known = self._launchers.get(region)
            if known is None or known[0] is not client:  # new credentials, new client
                name = names.cluster_name(self.settings)
                launcher = Launcher(name, region, client, lambda asked: self._run(client, asked))
                known = self._launchers[region] = (client, launcher)
            return known[1]

    def _run(self, client: Any, asked: Mapping[str, Any]) -> dict[str, Any]:
        """RunInstances, again where the same request may be answered a moment later.

        The token is in the request: an answer that was lost on its way costs nothing.
        """
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError

        wait = FIRST_WAIT_S
        for attempt in range(1, ATTEMPTS + 1):
            try:
                described: dict[str, Any] = client.run_instances(**asked)["Instances"][0]
                return described
            except (BotoCoreError, ClientError, ResponseParserError) as error:
                if attempt == ATTEMPTS or not (passing(error) or _not_yet_known(error)):
                    raise
            self._sleep(wait * random.uniform(0.5, 1.0))
            wait = min(LONGEST_WAIT_S, wait * 2)
        raise AssertionError("unreachable")

    def _by_token(self, region: str, token: str) -> dict[str, Any] | None:
        listed = self._describe(region, client_token=token)
        return next((each for each in listed if not machines.has_ended(each)), None)

    # --- listing ----------------------------------------------------------------------------------

    def instances(self) -> list[Instance]:
        """The living, and those that ended within the last hour or so (EC2 forgets them then)."""
        found: dict[str, Instance] = {}
        for region in self.settings.regions:
            with self.api.telling(Errand("listing the instances", region)):
                listed = self._describe(
                    region,
                    **{
                        f"tag:{tags.CLUSTER}": tags.plain(self.settings.cluster),
                        f"tag:{tags.OWNER}": tags.plain(self.settings.owner),
                    },
                )
                self._learn_kinds(region, listed)
                ends = self._spot_ends(region, listed)
            for each in listed:
                offer = machines.bought(each, region, self._offers, self._kinds)
                instance = machines.instance_of(each, offer)
                with self._lock:
                    self._remember(each, region)
                    self._unlisted.pop(instance.id, None)
                    final = each["State"]["Name"] not in machines.UNFINISHED
                    found[instance.id] = self._settled(instance, final, ends.get(instance.id))
        with self._lock:
            for instance in list(self._unlisted.values()):
                found[instance.id] = self._unseen(instance)
        return sorted(found.values(), key=lambda instance: instance.launched_at)

    def _settled(self, instance: Instance, final: bool, spot_end: datetime | None) -> Instance:
        """With one end and one reason, however often it is listed; what was ended here has ended,
        even where EC2's listing does not know it yet."""
        known = self._ended.get(instance.id)
        if known is None and not final:
            return instance
        if known is None:
            known = (instance.ended_at or spot_end or self._now(), instance.reason)
            self._ended[instance.id] = known
        return replace(instance, ended_at=known[0], reason=known[1])

    def _unseen(self, instance: Instance) -> Instance:
        """One that was launched and is not listed: not yet, or no more."""
        known = self._ended.get(instance.id)
        if known is None and self._now() - instance.launched_at > LISTED_WITHIN:
            known = (instance.launched_at + LISTED_WITHIN, "AWS does not list it")
        return replace(instance, ended_at=known[0], reason=known[1]) if known else instance

    def _describe(self, region: str, **filters: str) -> list[dict[str, Any]]:
        ec2 = self.api.client("ec2", region)
        asked = as_filters(**filters)
        reservations = self.api.pages(ec2, "describe_instances", "Reservations", Filters=asked)
        return [each for reservation in reservations for each in reservation["Instances"]]

    def _learn_kinds(self, region: str, listed: list[dict[str, Any]]) -> None:
        """What EC2 says of types that the catalogue does not know (any more)."""
        sold = {(offer.zone, offer.instance_type) for offer in self._offers}
        strange = {
            str(each["InstanceType"])
            for each in listed
            if (each["Placement"]["AvailabilityZone"], each["InstanceType"]) not in sold
        } - set(self._kinds)
        if strange:
            ec2 = self.api.client("ec2", region)
            for each in self.api.pages(
                ec2, "describe_instance_types", "InstanceTypes", InstanceTypes=sorted(strange)
            ):
                self._kinds[each["InstanceType"]] = each

    def _spot_ends(self, region: str, listed: list[dict[str, Any]]) -> dict[str, datetime]:
        """When the spot instances ended whose own description does not say it."""
        undated = {
            str(each["SpotInstanceRequestId"]): str(each["InstanceId"])
            for each in listed
            if each.get("SpotInstanceRequestId")
            and machines.has_ended(each)
            and machines.end_of(each) is None
            and each["InstanceId"] not in self._ended
        }
        if not undated:
            return {}
        ec2 = self.api.client("ec2", region)
        asked = as_filters(spot_instance_request_id=list(undated))
        requests = self.api.pages(
            ec2, "describe_spot_instance_requests", "SpotInstanceRequests", Filters=asked
        )
        ends = {
            undated[each["SpotInstanceRequestId"]]: machines.spot_end(each) for each in requests
        }
        return {instance: end for instance, end in ends.items() if end is not None}

    def _remember(self, described: Mapping[str, Any], region: str) -> None:
        instance_id = str(described["InstanceId"])
        _, known = self._where.get(instance_id, ("", ""))
        self._where[instance_id] = (region, str(described.get("SpotInstanceRequestId") or known))

    # --- the end ----------------------------------------------------------------------------------

    def terminate(self, instance_id: str, reason: str) -> None:
        """End an instance of this cluster, and its spot request; does not wait until it is gone."""
        if instance_id in self._ended:
            return
        where = self._where.get(instance_id) or self._find(instance_id)
        if where is None:
            return
        region, request = where
        errand = Errand(f"terminating {instance_id}", region)
        with self.api.telling(errand):
            if not _unless_gone(lambda: self._launcher(region).terminate(instance_id)):
                return
            with self._lock:
                self._ended.setdefault(instance_id, (self._now(), reason))
            if request:
                # Else it counts against the quota until AWS has noticed.
                ec2 = self.api.client("ec2", region)
                _unless_gone(
                    lambda: ec2.cancel_spot_instance_requests(SpotInstanceRequestIds=[request])
                )

    def _find(self, instance_id: str) -> tuple[str, str] | None:
        """Where an instance lives that another process launched; None for none of this cluster."""
        for region in self.settings.regions:
            with self.api.telling(Errand(f"looking for {instance_id}", region)):
                for each in self._describe(region, instance_id=instance_id):
                    carried = from_tags(each.get("Tags"))
                    mine = (tags.plain(self.settings.owner), tags.plain(self.settings.cluster))
                    theirs = (carried.get(tags.OWNER), carried.get(tags.CLUSTER))
                    if theirs == mine and each["State"]["Name"] in machines.UNFINISHED:
                        with self._lock:
                            self._remember(each, region)
                        return self._where[instance_id]
        return None

    def leftovers(self, now: datetime) -> list[Leftover]:
        return self._leftovers.find(now)

    def remove(self, leftover: Leftover) -> None:
        self._leftovers.remove(leftover)

    def _errand(self, offer: Offer) -> Errand:
        types = {each.instance_type for each in self._offers if each.region == offer.region}
        return Errand("launching", offer.region, offer, tuple(sorted(types)))


def _not_yet_known(error: Exception) -> bool:
    """Whether EC2 does not know a profile yet that IAM has just made: it takes some seconds."""
    return code_of(error) == "InvalidParameterValue" and "iamInstanceProfile" in message_of(error)


def _unless_gone(act: Callable[[], object]) -> bool:
    """Do it; False where there is nothing (any more) to do it to."""
    from botocore.exceptions import ClientError

    try:
        act()
    except ClientError as error:
        if not code_of(error).startswith(("InvalidInstanceID.", "InvalidSpotInstanceRequestID.")):
            raise
        return False
    return True
