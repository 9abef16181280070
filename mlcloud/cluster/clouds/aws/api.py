"""Clients of AWS: one a service and region, and none outside the regions that were allowed.

boto3 is loaded at the first call. Reads are repeated by botocore itself (its standard mode:
throttling, 5xx, broken lines); the client that launches is not, since EC2 says "no capacity" with
HTTP 500, which botocore would ask again for minutes where the next zone should be asked instead.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from mlcloud.cluster.clouds.aws import refusals
from mlcloud.cluster.clouds.aws.refusals import Errand
from mlcloud.cluster.clouds.base import CloudSettings
from mlcloud.errors import CloudCredentialsExpired, CloudRefused, CredentialsMissing, UsageError
from mlcloud.units import suggest

ATTEMPTS = 6
#: Services that have one address for all regions of a partition. They hold names, no data.
GLOBAL = ("iam",)


class Api:
    """Clients for one cluster's settings. Safe to use from several threads."""

    def __init__(self, settings: CloudSettings) -> None:
        self.settings = settings
        self._clients: dict[tuple[str, str, bool], Any] = {}
        self._session: Any = None
        self._lock = threading.Lock()

    def allow(self, region: str) -> None:
        """Raises `CloudRefused` unless the cluster may be in `region`: before anything is sent."""
        if region not in self.settings.regions:
            raise CloudRefused(
                f"{region or 'an offer without a region'} is outside the regions of cluster "
                f"{self.settings.cluster} ({', '.join(self.settings.regions) or 'none'}): nothing "
                "is launched, stored or copied there. Add it to `regions` if it may be."
            )

    def client(self, service: str, region: str, *, once: bool = False) -> Any:
        """A client of `service` in `region`; `once`: each call is tried a single time."""
        self.allow(region)
        key = (service, "" if service in GLOBAL else region, once)
        with self._lock:
            if key not in self._clients:
                config = _boto3()[1](
                    retries={
                        "mode": "standard",
                        "total_max_attempts": 1 if once else ATTEMPTS,
                    },
                    connect_timeout=10,
                    read_timeout=60,
                    user_agent_extra="mlcloud",
                )
                if self._session is None:
                    self._session = _boto3()[0].session.Session()
                self._clients[key] = self._session.client(
                    service,
                    region_name=region,
                    endpoint_url=self.settings.endpoints.get(service),
                    config=config,
                )
            return self._clients[key]

    def forget(self) -> None:
        """Read the credentials anew at the next call."""
        with self._lock:
            self._clients = {}
            self._session = None

    @contextmanager
    def telling(self, errand: Errand) -> Iterator[None]:
        """Raises what AWS answers inside as mlcloud's own errors, which name the errand."""
        _boto3()
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError

        try:
            yield
        except (BotoCoreError, ClientError, ResponseParserError) as error:
            told = refusals.told(error, errand, self._decoded(errand.region))
            if isinstance(told, CloudCredentialsExpired | CredentialsMissing):
                self.forget()
            raise told from error

    def pages(self, client: Any, operation: str, field: str, **asked: Any) -> Iterator[Any]:
        """Everything that `operation` lists under `field`, over all its pages."""
        for page in client.get_paginator(operation).paginate(**asked):
            yield from page.get(field, [])

    def check_regions(self) -> None:
        """Raises `UsageError` for a region that AWS does not have, with the nearest."""
        with self._lock:
            session = self._session = self._session or _boto3()[0].session.Session()
        known = {
            region
            for partition in session.get_available_partitions()
            for region in session.get_available_regions("ec2", partition_name=partition)
        }
        for region in self.settings.regions:
            if region not in known:
                raise UsageError(
                    f"AWS has no region {region!r}{suggest(region, known)} (as this boto3 knows; "
                    "a newer one may know more)"
                )

    def _decoded(self, region: str) -> refusals.Decode:
        def decode(message: str) -> str | None:
            from botocore.exceptions import BotoCoreError, ClientError

            try:
                answer = self.client("sts", region).decode_authorization_message(
                    EncodedMessage=message
                )
            except (BotoCoreError, ClientError):
                return None  # who may not do a thing may often not ask why either
            return str(answer["DecodedMessage"])

        return decode


def as_filters(**values: Iterable[str] | str) -> list[dict[str, Any]]:
    """EC2's filters: `as_filters(vpc_id="vpc-1", **{"tag:x": ["a"]})`."""
    return [
        {
            "Name": name if ":" in name else name.replace("_", "-"),
            "Values": [value] if isinstance(value, str) else list(value),
        }
        for name, value in values.items()
    ]


def as_tags(tags: dict[str, str]) -> list[dict[str, str]]:
    """Tags as AWS takes them."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def from_tags(tags: Iterable[dict[str, str]] | None) -> dict[str, str]:
    """Tags as AWS gives them."""
    return {tag["Key"]: tag["Value"] for tag in tags or ()}


def _boto3() -> tuple[Any, Any]:
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise CredentialsMissing(
            'the cloud is aws, and boto3 is not installed here: pip install "mlcloud[aws]"'
        ) from error
    return boto3, Config
