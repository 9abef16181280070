"""Who may reach the machines of a cluster whose network mlcloud makes: nobody, or named addresses.

`network: {ssh_from: "203.0.113.7, 198.51.100.0/24, me", public_ip: head}`. Machines talk to each
other freely; from outside only SSH is let in, and only from `ssh_from`; `me` is the address that
this computer shows to the world. The world itself is refused.
"""

from __future__ import annotations

import ipaddress
import urllib.request
from collections.abc import Mapping

from mlcloud.errors import CloudRefused, UsageError

WHO = ("head", "all", "none")
ME = "me"
CHECKIP = "https://checkip.amazonaws.com"
_WIDEST = {4: 8, 6: 32}  # prefix lengths; anything wider is the world


def check(network: Mapping[str, str]) -> None:
    """Raises `UsageError` for what `ssh_from` and `public_ip` cannot be. Asks nobody."""
    for part in _parts(network):
        if part != ME:
            _cidr(part)
    public_ip(network)


def ssh_from(network: Mapping[str, str], checkip: str = CHECKIP) -> list[str]:
    """The ranges that may come in by SSH, as CIDR.

    Raises `UsageError`, and `CloudRefused` where `me` is wanted and `checkip` does not answer.
    """
    return [_cidr(own_address(checkip) if part == ME else part) for part in _parts(network)]


def own_address(url: str = CHECKIP) -> str:
    """This computer's public address, as the service at `url` sees it."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return str(ipaddress.ip_address(answer.read(64).decode().strip()))
    except (OSError, ValueError) as error:
        raise CloudRefused(
            f"{url} did not tell this computer's address ({error}): give it by `network.ssh_from`"
        ) from error


def public_ip(network: Mapping[str, str], default: str = "head") -> str:
    """Which machines get an address of their own: `"head"`, `"all"` or `"none"`."""
    who = network.get("public_ip", default)
    if who not in (*WHO, default):
        raise UsageError(f"network: public_ip: {who!r} is none of {', '.join(WHO)}")
    return who


def _parts(network: Mapping[str, str]) -> list[str]:
    return network.get("ssh_from", "").replace(",", " ").split()


def _cidr(part: str) -> str:
    try:
        cidr = ipaddress.ip_network(part, strict=False)
    except ValueError as error:
        raise UsageError(
            f"network: ssh_from: {part!r} is no address or range, such as 203.0.113.7/32, or 'me'"
        ) from error
    if cidr.prefixlen < _WIDEST[cidr.version]:
        raise UsageError(
            f"network: ssh_from: {part} lets the world in: name your own address, such as "
            "203.0.113.7/32, or 'me'"
        )
    return str(cidr)
