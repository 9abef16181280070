"""Wheels of packages that no index has: built from their source, or put together again.

    built(folder)     an editable package, or a folder: the project's own build backend makes it,
                      and an unchanged source is not built again (blake3 over its files)
    packed(path)      modules that are no package: a file beside the notebook
    repacked(dist)    a local package that was installed: the wheel it came from, from its RECORD;
                      it is what the notebook imports, even if its source is gone or has changed

A build uses the backend that is installed here if it satisfies `build-system.requires`; only else
does it ask the index for one, in an isolated environment.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from blake3 import blake3

from mlcloud.environment import cache, facts
from mlcloud.errors import EnvironmentFailed, UsageError

SKIPPED = {
    *(".git", ".hg", ".svn", "__pycache__", "node_modules", ".venv", ".tox", ".nox", ".eggs"),
    *(".mypy_cache", ".pytest_cache", ".ruff_cache", ".ipynb_checkpoints", ".idea", ".vscode"),
}
SKIPPED_AT_THE_TOP = {"build", "dist"}  # further down they may be packages
LAST_LINES = 15

Wheel = tuple[str, str]  # digest, file name


def built(folder: Path) -> Wheel:
    """The wheel of a project folder. Raises `EnvironmentFailed` with the build's last lines."""
    if not is_project(folder):
        raise UsageError(f"{folder} has neither pyproject.toml nor setup.py: no wheel can be built")
    source = source_digest(folder)
    return cache.kept(source) or _build(folder, source)


def own_wheel() -> tuple[str, bytes, str]:
    """The mlcloud that runs here, as a wheel: its file name, its bytes, and their blake3.

    Raises `EnvironmentFailed` where it cannot be built.
    """
    source = Path(__file__).resolve().parents[2]
    dist = metadata.distribution("mlcloud")
    digest, name = built(source) if is_project(source) else repacked(dist)
    return name, (cache.wheel_folder() / digest / name).read_bytes(), digest


def is_project(folder: Path) -> bool:
    """Whether a wheel can be built of it."""
    return (folder / "pyproject.toml").exists() or (folder / "setup.py").exists()


def kept_as_it_is(wheel: Path) -> Wheel:
    """A wheel that somebody else built, put into the cache."""
    source = blake3(wheel.read_bytes()).hexdigest()
    known = cache.kept(source)
    if known is not None and known[1] == wheel.name:
        return known
    return cache.keep(wheel, source)


def source_digest(folder: Path) -> str:
    """blake3 over the names and contents of a project's files, and what a build depends on."""
    hasher = blake3(f"{sys.implementation.cache_tag} {sysconfig.get_platform()}".encode())
    for path in _files(folder):
        hasher.update(f"\0{path.relative_to(folder).as_posix()}\0".encode())
        if path.is_symlink():
            hasher.update(os.readlink(path).encode())
        elif path.is_file():
            hasher.update(str(path.stat().st_size).encode() + b"\0")
            hasher.update_mmap(path)
    return hasher.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        at_the_top = Path(place) == folder
        folders[:] = sorted(
            name
            for name in folders
            if name not in SKIPPED
            and not name.endswith(".egg-info")
            and not (at_the_top and name in SKIPPED_AT_THE_TOP)
            and not (Path(place) / name / "pyvenv.cfg").exists()
        )
        for name in sorted(names):
            if not name.endswith((".pyc", ".pyo")):
                yield Path(place) / name


def _build(folder: Path, source: str) -> Wheel:
    with tempfile.TemporaryDirectory(prefix="mlcloud-wheel-") as temporary:
        out = Path(temporary, "out")
        # setuptools would build inside the source, and pack what an earlier build left there.
        extra = Path(temporary, "distutils.cfg")
        extra.write_text(
            f"[build]\nbuild_base = {temporary}/build\n[egg_info]\negg_base = {temporary}\n"
        )
        isolated = not _backend_is_here(folder)
        done = subprocess.run(
            _frontend(folder, out, isolated),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=temporary,
            env={**os.environ, "DIST_EXTRA_CONFIG": str(extra)},
        )
        wheels = list(out.glob("*.whl")) if out.is_dir() else []
        if done.returncode or len(wheels) != 1:
            lines = "\n".join(done.stdout.strip().splitlines()[-LAST_LINES:])
            hint = (
                "its build backend is not installed here, so pip asked the index for it; "
                "installing it here would do too"
                if isolated
                else "build it by hand to see more, or leave it out with exclude="
            )
            raise EnvironmentFailed(f"no wheel could be built of {folder} ({hint}):\n{lines}")
        return cache.keep(wheels[0], source)


def _frontend(folder: Path, out: Path, isolated: bool) -> list[str]:
    if importlib.util.find_spec("pip") is not None:
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-input", "--quiet"]
        command += ["--disable-pip-version-check", "--wheel-dir", str(out)]
        return [*command, *([] if isolated else ["--no-build-isolation"]), str(folder)]
    if importlib.util.find_spec("build") is not None:
        command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(out)]
        return [*command, *([] if isolated else ["--no-isolation"]), str(folder)]
    if uv := shutil.which("uv"):
        command = [uv, "build", "--wheel", "--python", sys.executable, "--out-dir", str(out)]
        return [*command, *([] if isolated else ["--no-build-isolation"]), str(folder)]
    raise EnvironmentFailed(
        f"a wheel of {folder} must be built, and this Python has neither pip nor build, and there "
        "is no uv: install one of them"
    )


def _backend_is_here(folder: Path) -> bool:
    """Whether what the build needs is installed in this Python."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        tomllib = importlib.import_module("tomllib")
    except ImportError:  # Python 3.10: pip finds out by itself, with the index's help
        return False
    try:
        body: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text())
    except FileNotFoundError:
        body = {}
    except (OSError, ValueError):
        return False
    here = facts.installed()
    for line in body.get("build-system", {}).get("requires", ["setuptools"]):
        try:
            need = Requirement(line)
        except InvalidRequirement:
            return False
        if need.marker is not None and not need.marker.evaluate():
            continue
        version = here.get(facts.normalized(need.name))
        if need.url or version is None or not need.specifier.contains(version, prereleases=True):
            # `wheel` was needed by setuptools until 70.1 and is still asked for by many.
            if need.name == "wheel" and "setuptools" in here:
                continue
            return False
    return True


# --- from what is installed -----------------------------------------------------------------------


def repacked(dist: metadata.Distribution) -> Wheel:
    """The wheel that an installed package came from. Raises `EnvironmentFailed`.

    Source of the format: https://packaging.python.org/en/latest/specifications/binary-distribution-format/
    """
    name, version = dist.metadata["Name"], dist.metadata["Version"]
    record = dist.read_text("RECORD")
    if not record:
        raise EnvironmentFailed(
            f"{name} {version} is installed without a RECORD of its files, so it cannot be sent: "
            "install it again with pip, or leave it out with exclude="
        )
    source = blake3(f"repacked\n{sys.implementation.cache_tag}\n{record}".encode()).hexdigest()
    known = cache.kept(source)
    if known is not None:
        return known
    with tempfile.TemporaryDirectory(prefix="mlcloud-wheel-") as temporary:
        return cache.keep(_pack(dist, record, Path(temporary)), source)


def _pack(dist: metadata.Distribution, record: str, folder: Path) -> Path:
    name, version = dist.metadata["Name"], dist.metadata["Version"]
    stem = f"{facts.normalized(name).replace('-', '_')}-{version}"
    made_anew = {entry.name for entry in dist.entry_points if entry.group.endswith("_scripts")}
    with _Archive(folder / f"{stem}-{_tag(dist)}.whl", stem) as archive:
        for row in csv.reader(record.splitlines()):
            path = _wheel_path(row[0], archive.info, stem, made_anew)
            if path is None:
                continue
            try:
                data = _file(dist, row[0]).read_bytes()
            except OSError as error:
                raise EnvironmentFailed(
                    f"{name} {version} is not complete here ({error}): install it again, or leave "
                    "it out with exclude="
                ) from None
            archive.add(path, _unbound(data) if "/scripts/" in path else data)
    return archive.path


class _Archive:
    """A wheel being written: the same files give the same bytes. RECORD comes last."""

    def __init__(self, path: Path, stem: str) -> None:
        self.path = path
        self.info = f"{stem}.dist-info"
        self._lines: list[tuple[str, str, str]] = []
        self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)

    def __enter__(self) -> _Archive:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            text = io.StringIO()
            lines = [*self._lines, (f"{self.info}/RECORD", "", "")]
            csv.writer(text, lineterminator="\n").writerows(lines)
            self._write(f"{self.info}/RECORD", text.getvalue().encode())
        self._zip.close()

    def add(self, path: str, data: bytes) -> None:
        self._write(path, data)
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        self._lines.append((path, f"sha256={digest}", str(len(data))))

    def _write(self, path: str, data: bytes) -> None:
        entry = zipfile.ZipInfo(path, (2020, 1, 1, 0, 0, 0))
        entry.external_attr = 0o644 << 16
        entry.compress_type = zipfile.ZIP_DEFLATED
        self._zip.writestr(entry, data)


def _file(dist: metadata.Distribution, recorded: str) -> Path:
    """Where a file of RECORD lies. `pip install --target` puts the prefix's files elsewhere."""
    path = Path(str(dist.locate_file(recorded)))
    if not path.exists():
        inside = PurePosixPath(*(part for part in PurePosixPath(recorded).parts if part != ".."))
        path = Path(str(dist.locate_file(str(inside))))
    return path


# Written by the installer, not by the wheel.
_INSTALLERS = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}


def _wheel_path(installed: str, info: str, stem: str, made_anew: set[str]) -> str | None:
    """Where a file of an installed package lies in its wheel; None: the installer makes it."""
    parts = PurePosixPath(installed).parts
    if installed.endswith((".pyc", ".pyo")) or os.path.isabs(installed):
        return None
    if parts[0].endswith(".dist-info"):
        return None if parts[-1] in _INSTALLERS else str(PurePosixPath(info, *parts[1:]))
    if parts[0] != "..":
        return installed
    rest = [part for part in parts if part != ".."]
    if rest[0] in ("bin", "Scripts"):
        script = None if Path(rest[-1]).stem in made_anew or rest[-1] in made_anew else rest[-1]
        return script and str(PurePosixPath(f"{stem}.data", "scripts", script))
    return str(PurePosixPath(f"{stem}.data", "data", *rest))


def _unbound(script: bytes) -> bytes:
    """A script as the wheel has it: for whichever Python it is installed in."""
    first, newline, rest = script.partition(b"\n")
    bound = first.startswith(b"#!") and b"python" in first
    return b"#!python" + newline + rest if bound else script


def _tag(dist: metadata.Distribution) -> str:
    """`py3-none-any`, from the WHEEL file; several tags of one kind become one compressed tag."""
    text = dist.read_text("WHEEL") or ""
    tags = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("Tag:")]
    if not tags:
        return "py3-none-any"
    columns = zip(*(tag.split("-", 2) for tag in tags), strict=True)
    return "-".join(".".join(dict.fromkeys(column)) for column in columns)


# --- from files that are no package ---------------------------------------------------------------


def packed(path: Path) -> Wheel:
    """A module's file, or a folder with `__init__.py`, as a wheel whose version is its content."""
    files = [path] if path.is_file() else [each for each in _files(path) if each.is_file()]
    hasher = blake3()
    for file in files:
        hasher.update(f"{file.relative_to(path.parent).as_posix()}\0".encode())
        hasher.update(file.read_bytes())
    source = hasher.hexdigest()
    known = cache.kept(source)
    if known is not None:
        return known
    name, version = path.stem, f"0+{source[:12]}"
    stem = f"{name}-{version}"
    with tempfile.TemporaryDirectory(prefix="mlcloud-wheel-") as temporary:
        with _Archive(Path(temporary, f"{stem}-py3-none-any.whl"), stem) as archive:
            for file in files:
                archive.add(file.relative_to(path.parent).as_posix(), file.read_bytes())
            about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            archive.add(f"{archive.info}/METADATA", about.encode())
            kind = "Wheel-Version: 1.0\nGenerator: mlcloud\nRoot-Is-Purelib: true\n"
            archive.add(f"{archive.info}/WHEEL", f"{kind}Tag: py3-none-any\n".encode())
        return cache.keep(archive.path, source)
