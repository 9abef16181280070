"""A session's environment on its node: a thin virtual environment over the node's own packages.

    Ray's runtime_env agent ─► Overlay.create ─► venv, whose path goes on to the node's packages
                                              ─► wheels from the store, checked by hash
                                              ─► pip install of what the node lacks
                            ─► Overlay.modify_context: Ray's worker, and so the host and its kernel,
                               run with the overlay's Python

Indexes of the cluster's own, with their passwords, come by pip's configuration file, which the
node has (`environment/index`).

It is a plugin of Ray's (`RAY_RUNTIME_ENV_PLUGINS`, set in `cluster/raycluster.py`), so that Ray
counts who uses an overlay and deletes the unused. Ray's own `pip` and `uv` fields clone the node's
whole virtual environment for each list of packages and resolve every list with the index; here a
package that the node has costs nothing, and a lock is installed as it is.

What the cluster itself runs on (`mlcloud`, `ray`) is the node's, whatever the lock says.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import shutil
import site
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from ray._private.runtime_env.plugin import RuntimeEnvPlugin

from mlcloud.environment import facts
from mlcloud.environment.lock import CLUSTERS_OWN, without_hashes

FIELD = "mlcloud"
LAST_LINES = 15
COMPLETE = "complete"

# Ray carries an error of a plugin as text inside a text of its own: what is ours stands between.
BEGIN, END = "\x02mlcloud:", "\x03"

log = logging.getLogger(__name__)


class OverlayFailed(Exception):
    """What the user is told, marked for the gateway."""

    def __init__(self, text: str) -> None:
        super().__init__(f"{BEGIN}{text}{END}")


class Overlay(RuntimeEnvPlugin):  # type: ignore[misc]  # ray ships no complete types
    """Ray's plugin for the field `mlcloud` of a runtime_env; see `gateway/environments.py`."""

    name = FIELD

    def __init__(self) -> None:
        self._folders: dict[str, Path] = {}

    def get_uris(self, runtime_env: dict[str, Any]) -> list[str]:
        field = runtime_env.get(FIELD)
        return [f"{FIELD}://{field['id']}"] if field else []

    async def create(
        self, uri: str | None, runtime_env: dict[str, Any], context: Any, logger: Any = log
    ) -> int:
        field = runtime_env[FIELD]
        folder = folder_of(field)
        if uri is not None:
            self._folders[uri] = folder
        if not (folder / COMPLETE).exists():  # an agent that was started anew finds the old one's
            shutil.rmtree(folder, ignore_errors=True)
            try:
                await asyncio.wait_for(_make(folder, field, logger), field["timeout_s"])
                (folder / COMPLETE).touch()
            except asyncio.TimeoutError:
                shutil.rmtree(folder, ignore_errors=True)
                raise OverlayFailed(f"it was not done after {field['timeout_s']} s") from None
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        return await asyncio.to_thread(_bytes, folder)

    def modify_context(
        self, uris: list[str], runtime_env: dict[str, Any], context: Any, logger: Any = log
    ) -> None:
        folder = folder_of(runtime_env[FIELD])
        context.py_executable = str(_python(folder))
        context.env_vars.update(_environment(folder))

    def delete_uri(self, uri: str, logger: Any = log) -> int:
        folder = self._folders.pop(uri, None)
        if folder is None:
            return 0
        freed = _bytes(folder)
        shutil.rmtree(folder, ignore_errors=True)
        return freed


def folder_of(field: dict[str, Any]) -> Path:
    """Per node: nodes of a local cluster share a disk, and each counts its own users."""
    base = os.environ.get("MLCLOUD_NODE_DIR", field["folder"])
    return Path(base, os.environ.get("RAY_CLOUD_INSTANCE_ID", "node"), field["id"])


def _python(folder: Path) -> Path:
    return folder / "bin" / "python"


def _packages(folder: Path) -> Path:
    return folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


def _bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def _environment(folder: Path) -> dict[str, str]:
    """What a process that runs in the overlay sees."""
    # PYTHONPATH may name the node's own site-packages, so the overlay's come before it.
    paths = (str(_packages(folder)), os.environ.get("PYTHONPATH", ""))
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PATH": os.pathsep.join((str(folder / "bin"), os.environ.get("PATH", os.defpath))),
        "VIRTUAL_ENV": str(folder),
    }


# --- making one -----------------------------------------------------------------------------------


async def _make(folder: Path, field: dict[str, Any], logger: Any) -> None:
    has_pip = importlib.util.find_spec("pip") is not None
    venv = [sys.executable, "-m", "venv", *(["--without-pip"] if has_pip else []), str(folder)]
    await _run("making a virtual environment", venv, folder, logger)
    node = [*site.getsitepackages(), *([site.getusersitepackages()] if _user_site() else [])]
    lines = "; ".join(f"site.addsitedir({path!r})" for path in node)
    (_packages(folder) / "_mlcloud_node.pth").write_text(f"import site; {lines}\n")

    if has_pip:  # for `!pip` in a cell; `%pip` needs none
        for name in ("pip", "pip3"):
            script = folder / "bin" / name
            script.write_text(f'#!/bin/sh\nexec "{_python(folder)}" -m pip "$@"\n')
            script.chmod(0o755)

    wheels = await asyncio.to_thread(_fetch, folder / "wheels", field)
    pins = await asyncio.to_thread(_missing, field["pins"])
    python = [sys.executable, "-m", "pip", "--python", str(_python(folder))]
    pip = [
        *(python if has_pip else [str(_python(folder)), "-m", "pip"]),
        *("install", "--no-input", "--disable-pip-version-check", "--no-warn-conflicts"),
        "--no-warn-script-location",
    ]
    if pins or wheels:
        # The lock is complete. A wheel replaces the node's package of the same version, too.
        exactly = ["--no-deps", "--force-reinstall", "-r", _lines(folder / "pins.txt", pins)]
        await _run("installing the lock", [*pip, *exactly, *map(str, wheels)], folder, logger)
    if field["requirements"]:
        wanted = _lines(folder / "requirements.txt", field["requirements"])
        fixed = _lines(folder / "constraints.txt", [*_own_versions(), *filter(_is_pin, pins)])
        await _run("installing", [*pip, "-r", wanted, "-c", fixed], folder, logger)
    broken = await asyncio.to_thread(_broken, folder)
    if broken:
        raise OverlayFailed(
            f"this environment breaks what the session itself needs: {'; '.join(broken)}. Leave "
            "these packages to the node (exclude=), or take versions that fit"
        )
    shutil.rmtree(folder / "wheels", ignore_errors=True)


def _user_site() -> bool:
    return bool(site.ENABLE_USER_SITE) and os.path.isdir(site.getusersitepackages())


def _lines(path: Path, lines: list[str]) -> str:
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def _fetch(folder: Path, field: dict[str, Any]) -> list[Path]:
    """The wheels, from the store. Every chunk is verified, and then the whole."""
    from blake3 import blake3

    from mlcloud.errors import StoreError
    from mlcloud.store import ChunkRef, Store

    found = []
    folder.mkdir(exist_ok=True)
    for wheel in field["wheels"]:
        try:
            refs = [ChunkRef.of_short(name) for name in wheel["objects"]]
            data = Store(field["store"]).get_buffer(refs)
        except StoreError as error:
            raise OverlayFailed(f"the wheel {wheel['name']} could not be read: {error}") from error
        if blake3(data).hexdigest() != wheel["digest"]:
            raise OverlayFailed(
                f"the wheel {wheel['name']} is not the one that was captured: capture it again"
            )
        path = folder / Path(wheel["name"]).name
        path.write_bytes(data)
        found.append(path)
    return found


def _missing(pins: list[str]) -> list[str]:
    """Those that the node does not have itself, in that version or from that URL."""
    from packaging.requirements import Requirement

    from mlcloud.environment.capture import requirement_of

    here = facts.installed()
    found = []
    for line in pins:
        need = Requirement(without_hashes(line))
        name = facts.normalized(need.name)
        if need.marker is not None and not need.marker.evaluate():
            continue
        if need.url:
            dist = facts.distributions().get(name)
            same = dist is not None and requirement_of(dist) == line
        else:
            same = name in here and need.specifier.contains(here[name], prereleases=True)
        if not same and name not in CLUSTERS_OWN:
            found.append(line)
    return found


def _is_pin(line: str) -> bool:
    return "@" not in line  # pip takes no URL as a constraint on what it has installed from it


def _own_versions() -> list[str]:
    here = facts.installed()
    return [f"{name}=={here[name]}" for name in sorted(CLUSTERS_OWN) if name in here]


def _broken(folder: Path) -> list[str]:
    """What the cluster's own packages need and would not find in the overlay."""
    from packaging.requirements import Requirement

    there = facts.installed([str(_packages(folder)), *sys.path])
    found = []
    for name in sorted(CLUSTERS_OWN):
        with contextlib.suppress(metadata.PackageNotFoundError):  # run from its source
            for line in metadata.requires(name) or ():
                need = Requirement(line)
                if need.marker is not None and not need.marker.evaluate({"extra": ""}):
                    continue
                version = there.get(facts.normalized(need.name), "")
                if version and not need.specifier.contains(version, prereleases=True):
                    found.append(f"{name} needs {need.name}{need.specifier}, not {version}")
    return found


async def _run(what: str, command: list[str], folder: Path, logger: Any) -> None:
    """Run to the end. Raises `OverlayFailed` with the last lines; ends the command if cancelled."""
    logger.info("%s: %s", what, command)
    settings = ("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_REQUIRE_VIRTUALENV")
    environment = {key: value for key, value in os.environ.items() if key not in settings}
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**environment, **_environment(folder)},
        start_new_session=True,
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
    text = output.decode(errors="replace").strip()
    logger.info("%s", text)
    if process.returncode:
        lines = "\n".join(text.splitlines()[-LAST_LINES:])
        raise OverlayFailed(f"{what} failed on the node (exit code {process.returncode}):\n{lines}")
