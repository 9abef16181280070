"""Who the nodes are to AWS, and whose key opens them.

    head      role and instance profile `…-head`: may launch and end this cluster's machines
    workers   `…-worker`, made only where the store is a bucket: may use that bucket
    key       the public half of the user's SSH key; no private key is ever made or fetched

They are made when a head is launched (the head itself may make no roles) and go with `down`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any

from mlcloud.cluster.clouds import tags
from mlcloud.cluster.clouds.aws import names, policies
from mlcloud.cluster.clouds.aws.api import Api, as_tags, from_tags
from mlcloud.cluster.clouds.aws.refusals import code_of
from mlcloud.cluster.clouds.base import CloudSettings

POLICY = "mlcloud"


class Identity:
    """Roles, profiles and key of one cluster. Safe from several threads."""

    def __init__(
        self,
        api: Api,
        settings: CloudSettings,
        buckets: tuple[str, ...],
        now: Callable[[], datetime],
    ) -> None:
        self.api, self.settings, self.buckets, self._now = api, settings, buckets, now
        self._lock = threading.Lock()
        self._keys: set[str] = set()

    # --- profiles ---------------------------------------------------------------------------------

    def profile(self, *, head: bool) -> str | None:
        """The instance profile of a node; None where it needs none. Asks nothing."""
        given = "instance_profile" if head else "worker_instance_profile"
        if given in self.settings.network:
            return self.settings.network[given] or None
        if head:
            return names.role_name(self.settings, "head")
        return names.role_name(self.settings, "worker") if self.buckets else None

    def make_profiles(self, region: str) -> None:
        """Make the roles and profiles that nobody gave, or bring their policies up to date."""
        with self._lock:
            if "instance_profile" not in self.settings.network:
                self._make(region, "head", policies.head_policy(self.settings, self.buckets))
            if self.buckets and "worker_instance_profile" not in self.settings.network:
                self._make(region, "worker", policies.worker_policy(self.settings, self.buckets))

    def _make(self, region: str, kind: str, policy: dict[str, Any]) -> None:
        iam = self.api.client("iam", region)
        name = names.role_name(self.settings, kind)
        made = as_tags(tags.of_resource(self.settings, self._now()))
        again = _unless_there(
            lambda: iam.create_role(
                RoleName=name,
                Path=names.ROLE_PATH,
                AssumeRolePolicyDocument=json.dumps(policies.EC2_TRUST),
                Description=f"mlcloud: {kind} of cluster {self.settings.cluster}",
                Tags=made,
            )
        )
        if again:
            iam.tag_role(RoleName=name, Tags=made)
        iam.put_role_policy(RoleName=name, PolicyName=POLICY, PolicyDocument=json.dumps(policy))
        again = _unless_there(
            lambda: iam.create_instance_profile(
                InstanceProfileName=name, Path=names.ROLE_PATH, Tags=made
            )
        )
        if again:
            iam.tag_instance_profile(InstanceProfileName=name, Tags=made)
        profile = iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
        if not profile["Roles"]:
            iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)

    # --- the key ----------------------------------------------------------------------------------

    def key(self) -> str | None:
        """The key pair's name; None where there is none. Asks nothing."""
        given = self.settings.network.get("key_pair")
        if given:
            return given
        return names.cluster_name(self.settings) if self.settings.ssh_public_key else None

    def make_key(self, region: str) -> None:
        """Import the user's public key into `region`, in place of another one of this name."""
        if not self.settings.ssh_public_key or self.settings.network.get("key_pair"):
            return
        with self._lock:
            if region in self._keys:
                return
            ec2 = self.api.client("ec2", region)
            name = names.cluster_name(self.settings)
            present = ec2.describe_key_pairs(
                Filters=[{"Name": "key-name", "Values": [name]}], IncludePublicKey=True
            )["KeyPairs"]
            made = tags.of_resource(self.settings, self._now())
            if present and _same_key(present[0], self.settings.ssh_public_key):
                old = tags.read_time(from_tags(present[0].get("Tags")).get(tags.EXPIRES))
                if (
                    old is None
                    or (old - self._now()).total_seconds() < self.settings.lifetime_s / 2
                ):
                    ec2.create_tags(Resources=[present[0]["KeyPairId"]], Tags=as_tags(made))
            else:
                if present:
                    ec2.delete_key_pair(KeyName=name)
                _unless_there(
                    lambda: ec2.import_key_pair(
                        KeyName=name,
                        PublicKeyMaterial=str(self.settings.ssh_public_key).encode(),
                        TagSpecifications=[{"ResourceType": "key-pair", "Tags": as_tags(made)}],
                    )
                )
            self._keys.add(region)

    def forget(self, region: str) -> None:
        with self._lock:
            self._keys.discard(region)


def _unless_there(make: Callable[[], Any]) -> bool:
    """Make something; True where it was there already."""
    from botocore.exceptions import ClientError

    try:
        make()
    except ClientError as error:
        if code_of(error) not in {"EntityAlreadyExists", "InvalidKeyPair.Duplicate"}:
            raise
        return True
    return False


def _same_key(present: dict[str, Any], public_key: str) -> bool:
    """Whether both are one key, whatever comment follows it."""
    return str(present.get("PublicKey", "")).split()[:2] == public_key.split()[:2]
