"""Who may reach the machines of a cluster whose network mlcloud makes: nobody, or named addresses.

`network: {ssh_from: 203.0.113.7/32, public_ip: head}`. Machines talk to each other freely; from
outside only SSH to the head is let in, and only from `ssh_from`. The whole world is refused.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from mlcloud.errors import UsageError

WHO = ("head", "all", "none")


def ssh_from(network: Mapping[str, str]) -> list[str]:
    """The ranges that may reach the head by SSH, as CIDR. Raises `UsageError`."""
    ranges = []
    for part in network.get("ssh_from", "").replace(",", " ").split():
        try:
            cidr = ipaddress.ip_network(part, strict=False)
        except ValueError as error:
            raise UsageError(
                f"network: ssh_from: {part!r} is no address or range, such as 203.0.113.7/32"
            ) from error
        if cidr.prefixlen == 0:
            raise UsageError(
                "network: ssh_from: the whole world is never let in; name your own address, such "
                "as 203.0.113.7/32"
            )
        ranges.append(str(cidr))
    return ranges


def public_ip(network: Mapping[str, str]) -> str:
    """Which machines get an address of their own: `"head"`, `"all"` or `"none"`."""
    who = network.get("public_ip", "head")
    if who not in WHO:
        raise UsageError(f"network: public_ip: {who!r} is none of {', '.join(WHO)}")
    return who
