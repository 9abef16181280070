"""What sessions run with: the nodes' packages, or an environment of a session's own over them.

    check(request)         at creation: what cannot work on these nodes is refused, nothing is spent
    runtime_env(session)   for Ray, when a host is made; `kernel/overlay.py` makes it on the node
    raise_if_broken(...)   an environment that a node could not make would fail on the next one too
    of_nodes, of_session   facts for the client to compare with its own

Before there is a node, the facts are the gateway's own: it runs on the head, with the same Python
and packages as the nodes.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3
from packaging.requirements import InvalidRequirement, Requirement
from packaging.tags import sys_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from mlcloud.environment import facts
from mlcloud.environment.facts import Facts, normalized
from mlcloud.environment.lock import CLUSTERS_OWN, without_hashes
from mlcloud.errors import Conflict, EnvironmentFailed, EnvironmentMismatch, UsageError
from mlcloud.models import EnvironmentSpec, NodeFacts, SessionRequest

if TYPE_CHECKING:
    from mlcloud.gateway.session import Session

log = logging.getLogger(__name__)

SETUP_S = 1800  # a CUDA build of torch is 3 GB
ASK_S = 5.0


def check(request: SessionRequest) -> None:
    """Refuse what no node could make. Raises `EnvironmentMismatch` and `UsageError`."""
    check_spec(request.environment)


def check_spec(spec: EnvironmentSpec | None) -> None:
    """As `check`."""
    if spec is None:
        return
    nodes = facts.report()
    if spec.python != nodes.minor:
        raise EnvironmentMismatch(
            f"this environment is of Python {spec.python}, and the nodes run {nodes.python}: "
            "capture it with that Python"
        )
    for line in [*spec.pins, *spec.requirements]:
        try:
            Requirement(without_hashes(line))
        except InvalidRequirement as error:
            raise UsageError(f"{line!r} is no requirement: {str(error).splitlines()[0]}") from None
    tags = set(sys_tags())
    for wheel in spec.wheels:
        try:
            *_, fits = parse_wheel_filename(wheel.name)
        except InvalidWheelFilename as error:
            raise UsageError(f"{wheel.name!r} is no wheel's name: {error}") from None
        if not tags & fits:
            raise EnvironmentMismatch(
                f"{wheel.name} was built for another system than the nodes' ({nodes.platform}, "
                f"Python {nodes.minor}): leave it out with exclude=, or give a wheel for theirs"
            )


def same(existing: SessionRequest, wanted: SessionRequest) -> None:
    """Raises `Conflict` where a session of this name has other packages than those asked for."""
    if wanted.environment is None or wanted.environment == existing.environment:
        return
    have = existing.environment
    raise Conflict(
        f"session {existing.name!r} exists with another environment "
        f"({have.summary if have else 'that of the nodes'}): close it first, or use another name"
    )


def runtime_env(session: Session) -> dict[str, Any] | None:
    """For Ray's `runtime_env`; None: the session runs with what the node has."""
    services = session.services
    return runtime_env_of(session.request.environment, services.store_url, services.ray_dir)


def runtime_env_of(
    spec: EnvironmentSpec | None, store_url: str, ray_dir: Path
) -> dict[str, Any] | None:
    if spec is None:
        return None
    from mlcloud.kernel.overlay import FIELD

    content = spec.model_dump_json(exclude={"summary"}).encode()
    field = {
        "id": blake3(content).hexdigest()[:24],
        "pins": spec.pins,
        "requirements": spec.requirements,
        "wheels": [wheel.model_dump() for wheel in spec.wheels],
        "store": store_url,
        "folder": str(ray_dir / "e"),
        "timeout_s": SETUP_S,
    }
    return {FIELD: field, "config": {"setup_timeout_seconds": SETUP_S + 60}}


def raise_if_broken(session: Session, error: Exception) -> None:
    """Raises `EnvironmentFailed` if a host did not start because of its environment."""
    from mlcloud.kernel.overlay import BEGIN, END

    text = str(error)
    if BEGIN in text:
        why = text.partition(BEGIN)[2].partition(END)[0]
        raise EnvironmentFailed(
            f"the environment of session {session.request.name!r} could not be made: {why}"
        ) from error


async def of_nodes() -> NodeFacts:
    """What every node has."""
    found = await asyncio.to_thread(facts.report)
    return NodeFacts(**found.to_wire())


async def of_session(session: Session, modules: list[str]) -> NodeFacts:
    """What this session's code runs with: read beside its kernel, else what it will be."""
    if session.host is not None and session.host.alive:
        try:
            found = await asyncio.wait_for(session.host.call("environment", modules), ASK_S)
            return NodeFacts(**found, source="session")
        except Exception as error:  # Ray's kinds of gone and busy: what is expected is known
            log.info("host %s-%s told no facts: %s", session.id, session.epoch, error)
    nodes = await asyncio.to_thread(facts.report, modules)
    spec = session.request.environment
    if spec is None:
        return NodeFacts(**nodes.to_wire(), source="nodes")
    return _expected(nodes, spec)


def _expected(nodes: Facts, spec: EnvironmentSpec) -> NodeFacts:
    """The nodes' packages with the session's own over them."""
    packages = dict(nodes.packages)
    for line in [*spec.requirements, *spec.pins]:
        need = Requirement(without_hashes(line))
        name = normalized(need.name)
        here = packages.get(name)
        stays = (
            here is not None and not need.url and need.specifier.contains(here, prereleases=True)
        )
        if not stays and name not in CLUSTERS_OWN:
            exact = [each.version for each in need.specifier if each.operator == "=="]
            packages[name] = exact[0] if exact else ""
    for wheel in spec.wheels:
        name, version, *_ = parse_wheel_filename(wheel.name)
        packages[normalized(name)] = str(version)
    wire = {**nodes.to_wire(), "packages": packages}
    if spec.requirements:
        # What they bring along is known once a node has resolved them.
        wire["importable"] = {name: found for name, found in nodes.importable.items() if found}
    return NodeFacts(**wire, source="expected")
