"""What a job ran with, noted when it runs, and had again when it is run again.

packages   of the nodes; with an environment of its own, those that its first worker had
then(job)  ─► an EnvironmentSpec: the wheels that it had, and pins for each package of which the
              nodes have another version today; None where they have the same
"""

from __future__ import annotations

import functools
import platform
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement
from packaging.utils import parse_wheel_filename
from packaging.version import InvalidVersion, Version

from mlcloud import __version__
from mlcloud.environment import facts
from mlcloud.environment.facts import normalized
from mlcloud.environment.lock import CLUSTERS_OWN
from mlcloud.models import EnvironmentSpec

PACKAGES = frozenset({"packages", "local"})

if TYPE_CHECKING:
    from mlcloud.gateway.jobs.job import Job
    from mlcloud.gateway.session import Services
    from mlcloud.job_models import JobRequest


def noted(services: Services, request: JobRequest) -> dict[str, Any]:
    """What would have to be had again to run it as it was."""
    spec = getattr(services.cluster.cloud, "spec", None)
    runtime = getattr(spec, "runtime", None)
    found: dict[str, Any] = {
        "mlcloud": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "image": getattr(runtime, "image", None) or "",
    }
    if request.environment is None:  # with what the nodes have
        found["packages"] = facts.report().packages
        found["local"] = local()
    return found


@functools.cache
def local() -> list[str]:
    """Packages that no index has: built here, editable, from a file. They are what they are now."""
    return sorted(
        name
        for name, dist in facts.distributions().items()
        if facts.source_of(dist) is not None or facts.direct_url(dist).get("url")
    )


def then(job: Job) -> EnvironmentSpec | None:
    """The environment in which it runs as it did."""
    spec = job.request.environment
    packages: dict[str, str] = job.remembered.get("packages") or {}
    if not packages:
        return spec
    own = EnvironmentSpec(python=_minor(job)) if spec is None else spec
    by_url = [line for line in own.requirements if Requirement(line).url]
    left = {*CLUSTERS_OWN, *job.remembered.get("local", ())}
    left |= {normalized(parse_wheel_filename(each.name)[0]) for each in own.wheels}
    left |= {normalized(Requirement(line).name) for line in by_url}
    here = facts.report().packages
    pins = [
        f"{name}=={_public(version)}"
        for name, version in sorted(packages.items())
        if name not in left and here.get(name) != version
    ]
    if not pins and spec is None:
        return None
    summary = f"the packages of job {job.id}: {len(pins)} are not the nodes' of today"
    update = {"pins": pins, "requirements": by_url, "summary": summary}
    return own.model_copy(update=update)


def _minor(job: Job) -> str:
    return ".".join(str(job.remembered.get("python") or platform.python_version()).split(".")[:2])


def _public(version: str) -> str:
    """Without a local label: `2.13.0+cpu` is on no index."""
    try:
        return Version(version).public
    except InvalidVersion:
        return version
