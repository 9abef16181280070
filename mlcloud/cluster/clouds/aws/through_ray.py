"""Ray's own `AWSNodeProvider` launches and terminates; EC2's answers come through unchanged.

What of it serves: it makes the request from the node's configuration and its tags, adds Ray's own
(`ray-cluster-name`, by which Ray's tools know a cluster's machines) and terminates in batches. What
does not, and what is done about it:

    tries RunInstances five times in a row, even where   its EC2 is ours (`_Ec2`): one launch,
      there is no capacity, right or quota                 with pauses where a second try may do
    stops nodes and starts them again                    off (`cache_stopped_nodes`): a stopped
                                                           disk bills, a spot node cannot stop
    makes clients from boto3's one default session,      ours are given; they read renewed
      and keeps them for ever                              credentials
    prints to the terminal, and aborts through click     its words go to the log (`_Log`)
    lists pending and running nodes only                 `machines` lists, the ended ones too
    sets tags later, in batches                          all tags are in the launch

Several launches may be under way in several threads: of its state it writes none here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)

#: Makes one launch of a request, and gives EC2's description of the instance.
Run = Callable[[Mapping[str, Any]], dict[str, Any]]


class Launcher:
    """One cluster's `AWSNodeProvider` in one region."""

    def __init__(self, cluster: str, region: str, client: Any, run: Run) -> None:
        self._provider = _provider_class()(cluster, region, _Ec2(client, run))

    def launch(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Launch one instance of RunInstances' `body`; EC2's description of it.

        Raises what `run` does.
        """
        config = {**body, "SubnetIds": []}  # the subnet is in NetworkInterfaces
        created: dict[str, _Created]
        try:
            created = self._provider.create_node(config, {}, 1)
        except _Refused as refused:
            raise refused.answer from None
        return next(iter(created.values())).described

    def terminate(self, instance_id: str) -> None:
        """End an instance. Raises botocore's errors."""
        self._provider.terminate_nodes([instance_id])


class _Refused(Exception):
    """EC2's answer, past the place where Ray's provider would ask again."""

    def __init__(self, answer: Exception) -> None:
        super().__init__(str(answer))
        self.answer = answer


class _Created:
    """An instance, as far as Ray looks at what it launched."""

    def __init__(self, described: dict[str, Any]) -> None:
        self.described = described
        self.id = self.instance_id = str(described["InstanceId"])
        self.state = described["State"]
        self.state_reason = described.get("StateReason")


class _Meta:
    def __init__(self, client: Any) -> None:
        self.client = client


class _Ec2:
    """What Ray's provider uses of boto3's EC2 resource (which is not safe from several threads)."""

    def __init__(self, client: Any, run: Run) -> None:
        self.meta = _Meta(client)
        self._run = run

    def create_instances(self, **body: Any) -> list[_Created]:
        from botocore.exceptions import ClientError

        try:
            return [_Created(self._run(body))]
        except ClientError as error:
            raise _Refused(error) from error


class _Log:
    """Ray's `cli_logger`, as far as its AWS provider uses it, writing to the log."""

    def print(self, text: str, *parts: object, **_: object) -> None:
        log.info(text.replace("{}", "%s"), *parts)

    warning = print

    @contextmanager
    def group(self, text: str, *parts: object, **_: object) -> Iterator[None]:
        self.print(text, *parts)
        yield

    def abort(self, text: str, *_: object, exc: BaseException | None = None) -> None:
        raise exc or RuntimeError(text)


def _provider_class() -> Any:
    from ray.autoscaler._private.aws import node_provider
    from ray.autoscaler.node_provider import NodeProvider

    node_provider.cli_logger = _Log()

    class Provider(node_provider.AWSNodeProvider):  # type: ignore[misc]  # Ray ships no types
        def __init__(self, cluster: str, region: str, ec2: _Ec2) -> None:
            # Not AWSNodeProvider's own, which makes two sets of clients that nobody would use.
            NodeProvider.__init__(self, {"type": "aws", "region": region}, cluster)
            self.cache_stopped_nodes = False
            self.ec2 = self.ec2_fail_fast = ec2

    return Provider
