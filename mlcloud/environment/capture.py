"""Looking at this Python's packages and saying of each how another machine gets it.

from an index                           name==version
from git or an archive's URL            name @ url, with the commit or hash
editable: imported from its source      a wheel built of the source as it is now
a local folder or file, installed       the wheel it came from, put together again
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import parse_wheel_filename
from packaging.version import InvalidVersion, Version

from mlcloud.environment import facts, wheels
from mlcloud.environment.facts import normalized
from mlcloud.environment.lock import CLUSTERS_OWN, Environment, Package
from mlcloud.errors import UsageError

INSTALLERS = frozenset({"pip", "uv", "distribute"})


def capture(
    include: Iterable[str] | None = None,
    exclude: Iterable[str] = (),
    extra: Iterable[str | Path] = (),
) -> Environment:
    """This Python's packages, for `mlcloud.session(environment=…)`.

    `include`: only these and what they need; `exclude`: all but these. `extra`: what is not
    installed here and wanted there, as for `of`. Installers are left out.

    Editable packages are built into wheels, which takes some seconds the first time and none while
    their source is unchanged. Raises `UsageError` for a name that is not installed, and
    `EnvironmentFailed` where a wheel cannot be built.
    """
    dists = facts.distributions()
    left_out = {normalized(name) for name in _names(exclude)} | INSTALLERS
    wanted = dists.keys() if include is None else _closure(_names(include), dists)
    packages = tuple(
        described(dist) for name, dist in dists.items() if name in wanted and name not in left_out
    )
    found = of(extra)
    return Environment(
        python=_minor(),
        platform=f"{sys.platform}-{platform.machine()}",
        packages=packages + found.packages,
        requirements=found.requirements,
    )


def of(lines: Iterable[str | Path] | str | Path) -> Environment:
    """Packages beside those that the nodes have, by requirement.

    Each is a requirement (`polars==1.9`, `mypackage @ git+https://…`), the path of a project's
    folder, of a wheel, or of a module beside the notebook (`./helpers.py`); a single text is the
    path of a requirements file. What they need is resolved on the node. Raises `UsageError` for a
    line that is none of these.
    """
    if isinstance(lines, (str, Path)):
        lines = _read(Path(lines))
    packages: list[Package] = []
    requirements: list[str] = []
    for line in lines:
        found = _local(line)
        if found is None:
            requirements.append(str(_requirement(str(line))))
        else:
            packages.append(found)
            if found.source != "module":
                # Installed from its wheel by then; this has pip look at what it needs.
                requirements.append(f"{found.name}=={found.version}")
    return Environment(
        python=_minor(),
        platform=f"{sys.platform}-{platform.machine()}",
        packages=tuple(packages),
        requirements=tuple(dict.fromkeys(requirements)),
    )


def described(dist: metadata.Distribution) -> Package:
    """How another machine gets this package."""
    name, version = facts.identity(dist)
    url = facts.direct_url(dist)
    source = facts.source_of(dist)
    if name in CLUSTERS_OWN:
        return Package(name, version, "index", f"{name}=={version}", where="the cluster's own")
    if source is not None:
        digest, wheel = wheels.built(source)
        return Package(name, version, "editable", "", wheel, digest, str(source))
    where = str(url.get("url", ""))
    if facts.local_path(where) is not None and "vcs_info" not in url:
        digest, wheel = wheels.repacked(dist)
        return Package(name, version, "local", "", wheel, digest, str(facts.local_path(where)))
    return Package(
        name, version, "url" if where else "index", requirement_of(dist), where=where or "index"
    )


def requirement_of(dist: metadata.Distribution) -> str:
    """What pip is told to get the same: a pin, or a URL with its commit or hash."""
    name, version = facts.identity(dist)
    url = facts.direct_url(dist)
    where = str(url.get("url", ""))
    if "vcs_info" in url:
        line = f"{name} @ {url['vcs_info']['vcs']}+{where}@{url['vcs_info']['commit_id']}"
        folder = url.get("subdirectory")
        return f"{line}#subdirectory={folder}" if folder else line
    if where:
        hashes = url.get("archive_info", {}).get("hashes", {})
        pin = "".join(f"#{kind}={value}" for kind, value in list(hashes.items())[:1])
        return f"{name} @ {where}{pin}"
    return f"{name}=={_public(version)}"


def _public(version: str) -> str:
    """Without a local label: `2.13.0+cpu` is on no index, and a GPU node wants another build."""
    try:
        return Version(version).public
    except InvalidVersion:
        return version


def _minor() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def _names(names: Iterable[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _closure(names: list[str], dists: dict[str, metadata.Distribution]) -> set[str]:
    """These packages and all they need, as far as it is installed."""
    found: set[str] = set()
    waiting: list[tuple[str, str]] = []
    for name in names:
        need = _requirement(name)
        if normalized(need.name) not in dists:
            raise UsageError(f"there is no package {name!r} here; `extra=` names those to add")
        waiting += [(normalized(need.name), extra) for extra in ("", *need.extras)]
    looked: set[tuple[str, str]] = set()
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in looked or name not in dists:
            continue
        looked.add((name, extra))
        found.add(name)
        for line in dists[name].requires or ():
            need = Requirement(line)
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                waiting += [(normalized(need.name), each) for each in ("", *need.extras)]
    return found


def _requirement(line: str) -> Requirement:
    try:
        return Requirement(line.strip())
    except InvalidRequirement as error:
        reason = str(error).splitlines()[0]
        hint = "; pip's options are the node's own to set" if line.strip().startswith("-") else ""
        raise UsageError(f"{line!r} is no requirement, folder or wheel ({reason}){hint}") from None


def _local(line: str | Path) -> Package | None:
    """A folder or wheel of this computer, None for anything else."""
    text = str(line).strip()
    path = Path(text).expanduser()
    if path.suffix == ".whl":
        if not path.is_file():
            raise UsageError(f"there is no wheel {path}")
        digest, wheel = wheels.kept_as_it_is(path)
        where = path
        source = "local"
    elif isinstance(line, Path) or text.startswith((".", "/", "~")):
        where = path.resolve()
        if not where.exists():
            raise UsageError(f"there is no {path} here")
        if where.is_file() and where.suffix != ".py":
            raise UsageError(f"{path} is neither a wheel, a project's folder, nor a module")
        importable = where.is_file() or (where / "__init__.py").exists()
        loose = importable and not wheels.is_project(where)
        digest, wheel = wheels.packed(where) if loose else wheels.built(where)
        source = "module" if loose else "local"
    else:
        return None
    name, version, _, _ = parse_wheel_filename(wheel)
    return Package(normalized(name), str(version), source, "", wheel, digest, str(where))


def _read(path: Path) -> list[str]:
    """The lines of a requirements file, comments and continued lines put right."""
    try:
        text = path.expanduser().read_text()
    except OSError as error:
        raise UsageError(
            f"environment={str(path)!r} is neither 'capture' nor a requirements file ({error})"
        ) from None
    lines = [line.partition(" #")[0].strip() for line in text.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]
