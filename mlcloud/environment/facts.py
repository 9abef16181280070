"""What a Python has installed: read from the names of folders, nothing imported.

    report()                  python, platform, mlcloud, IPython, every package with its version
    installed()               the packages alone: 235 of them take 1 ms, so nothing is cached
    owner("pandas.core.x")    which package a loaded module belongs to

The folder `pandas-2.3.3.dist-info` says all that is needed, so its METADATA is not opened (reading
that of 235 packages takes 0.3 s, `importlib.metadata.packages_distributions` 0.5 s). Which package
a module belongs to is in the RECORD files: searched as bytes, once per module.

Both sides use this: the notebook, the gateway, and the host beside a session's kernel.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

_SEPARATORS = re.compile(r"[-_.]+")


def normalized(name: str) -> str:
    """A package's name as indexes compare it (PEP 503)."""
    return _SEPARATORS.sub("-", name).lower()


@dataclass(frozen=True)
class Facts:
    """One side's Python. `packages` is by normalized name; a version of "" is not known yet.

    `importable` answers for the top-level modules that were asked about.
    """

    python: str
    implementation: str
    platform: str
    mlcloud: str
    api: str
    packages: dict[str, str]
    importable: dict[str, bool] = field(default_factory=dict)

    @property
    def minor(self) -> str:
        """`3.11`: what compiled code and wheels depend on."""
        return ".".join(self.python.split(".")[:2])

    def to_wire(self) -> dict[str, Any]:
        return asdict(self)


def report(modules: Iterable[str] = ()) -> Facts:
    """This Python, now. `modules` are top-level modules to look for; none is imported."""
    from mlcloud import __version__
    from mlcloud.models import API_VERSION

    importlib.invalidate_caches()  # somebody may have installed one a moment ago
    return Facts(
        python=platform.python_version(),
        implementation=sys.implementation.name,
        platform=f"{sys.platform}-{platform.machine()}",
        mlcloud=__version__,
        api=API_VERSION,
        packages=installed(),
        importable={name: _is_importable(name) for name in modules},
    )


def _is_importable(name: str) -> bool:
    try:
        return name in sys.modules or importlib.util.find_spec(name) is not None
    except (ImportError, ValueError, AttributeError):  # a module that is half there
        return False


def installed(path: Iterable[str] | None = None) -> dict[str, str]:
    """Versions by normalized name; the first on the path is the one that is imported."""
    found: dict[str, str] = {}
    for folder in dict.fromkeys(sys.path if path is None else path):
        try:
            names = os.listdir(folder or ".")
        except OSError:  # zip files, and folders that are not there
            continue
        for name in names:
            if name.endswith((".dist-info", ".egg-info")):
                package, version = _parsed(folder, name)
                if version:
                    found.setdefault(package, version)
    return dict(sorted(found.items()))


def _parsed(folder: str, name: str) -> tuple[str, str]:
    stem, _, kind = name.rpartition(".")
    package, _, version = stem.partition("-")
    if kind == "egg-info":
        version = version.partition("-py")[0]
        if not version:  # a source folder in use as it is: the version is inside
            version = str(metadata.PathDistribution(Path(folder, name)).metadata["Version"] or "")
    return normalized(package), version


# --- which package a module is of -----------------------------------------------------------------


def owner(module: str) -> str | None:
    """The normalized name of the package that a loaded module belongs to.

    None for the standard library, the notebook, and files that belong to no package.
    """
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top in ("__main__", "__mp_main__"):
        return None
    # Several packages may share a top level that is none of theirs (`google`).
    shared = getattr(sys.modules.get(top), "__file__", None) is None
    return _owner(module if shared else top)


@lru_cache(maxsize=4096)
def _owner(module: str) -> str | None:
    top = module.partition(".")[0]
    file = _file_of(module)
    if file is None:  # built into an extension module, or gone
        return normalized(top) if normalized(top) in installed() else None
    for folder in map(Path, dict.fromkeys(sys.path)):
        if folder.is_dir() and file.is_relative_to(folder):
            found = _recorded(folder, file.relative_to(folder))
            if found is not None:
                return found
    for dist in editable():
        if file.is_relative_to(source_of(dist) or "/nowhere"):
            return identity(dist)[0]
    return None


def _file_of(module: str) -> Path | None:
    """The file of a module, or of the nearest package around it that has one."""
    while module:
        file = getattr(sys.modules.get(module), "__file__", None)
        if file is not None:
            return Path(file)
        module = module.rpartition(".")[0]
    return None


def _recorded(folder: Path, relative: Path) -> str | None:
    """The package in `folder` whose RECORD lists the file; first the one of the same name."""
    line = f"{relative.as_posix()},".encode()
    guess = normalized(relative.parts[0])
    infos = [path for path in folder.glob("*.dist-info") if path.is_dir()]
    infos.sort(key=lambda path: normalized(path.name.partition("-")[0]) != guess)
    for info in infos:
        try:
            record = (info / "RECORD").read_bytes()
        except OSError:
            continue
        if record.startswith(line) or b"\n" + line in record:
            return normalized(info.name.partition("-")[0])
    return None


# --- where a package came from --------------------------------------------------------------------


def distributions() -> dict[str, metadata.Distribution]:
    """Every package on the path, by normalized name; the first is the one that is imported."""
    found: dict[str, metadata.Distribution] = {}
    for dist in metadata.distributions():
        name, version = identity(dist)
        if name and version:
            found.setdefault(name, dist)
    return dict(sorted(found.items()))


def identity(dist: metadata.Distribution) -> tuple[str, str]:
    """Normalized name and version, from the folder's name where that has both."""
    path = getattr(dist, "_path", None)
    if isinstance(path, Path) and path.suffix == ".dist-info":
        return _parsed(str(path.parent), path.name)
    return normalized(dist.metadata["Name"] or ""), dist.metadata["Version"] or ""


def direct_url(dist: metadata.Distribution) -> dict[str, Any]:
    """What the installer wrote down about a package that came from no index; else {}.

    Source: https://packaging.python.org/en/latest/specifications/direct-url/
    """
    import json

    text = dist.read_text("direct_url.json")
    # conda writes where its own build farm unpacked the source, which is nowhere here.
    if not text or (dist.read_text("INSTALLER") or "").strip() == "conda":
        return {}
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def source_of(dist: metadata.Distribution) -> Path | None:
    """The folder that an editable package is imported from."""
    url = direct_url(dist)
    if url.get("dir_info", {}).get("editable"):
        return local_path(url["url"])
    # `setup.py develop` of old leaves the metadata in the source folder.
    path = getattr(dist, "_path", None)
    if isinstance(path, Path) and path.suffix == ".egg-info" and path.is_dir():
        for folder in (path.parent, path.parent.parent):
            if any((folder / name).exists() for name in ("pyproject.toml", "setup.py")):
                return folder
    return None


def local_path(url: str) -> Path | None:
    """The path of a `file:` URL, None for any other."""
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    parts = urlsplit(url)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else None


def editable() -> Iterator[metadata.Distribution]:
    """The packages that are imported from their source folder."""
    for dist in metadata.distributions():
        if source_of(dist) is not None:
            yield dist
