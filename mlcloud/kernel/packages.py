"""Packages that a session's cells have installed: remembered in its snapshots, brought back with
them.

    %pip install polars      the next snapshot names polars and its version
    restore on another node  what is named and not there is installed again, before the names load

A node's disk goes with the node. What cannot be had again (a wheel that only lay there) is said,
with the names that needed it; the rest of the state is restored all the same.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

from mlcloud.environment import facts
from mlcloud.environment.lock import CLUSTERS_OWN

INSTALL_S = 600
LAST_LINES = 3


class Packages:
    """What has changed since this kernel started. Looking costs a `stat` a folder."""

    def __init__(self) -> None:
        self._before = facts.installed(_path())
        self._changed: dict[str, str] = {}
        self._seen = _state_of_folders()

    def installed(self) -> dict[str, str]:
        """Versions by name, of what cells have installed or brought to another version."""
        seen = _state_of_folders()
        if seen != self._seen:
            self._seen = seen
            self._changed = {
                name: version
                for name, version in facts.installed(_path()).items()
                if self._before.get(name) != version and name not in CLUSTERS_OWN
            }
        return self._changed

    def bring_back(self, wanted: dict[str, str]) -> dict[str, str]:
        """Install again what an earlier kernel had; for what cannot be had, why."""
        here = facts.installed(_path())
        lacking = {name: version for name, version in wanted.items() if here.get(name) != version}
        failed: dict[str, str] = {}
        if lacking and (why := _install(lacking)):
            failed = dict.fromkeys(lacking, why)
            if len(lacking) > 1:  # one that cannot be had must not keep the others away
                each = {name: _install({name: version}) for name, version in lacking.items()}
                failed = {name: why for name, why in each.items() if why}
        importlib.invalidate_caches()
        self._before = {name: v for name, v in self._before.items() if name not in wanted}
        self._seen = ()
        return failed


def _path() -> list[str]:
    """Where packages are that somebody installed: not inside another one.

    (`import pkg_resources` puts setuptools' own copies of a dozen packages on the path.)
    """
    return [
        folder
        for folder in sys.path
        if not {"site-packages", "dist-packages"}.intersection(Path(folder).parts[:-1])
    ]


def _state_of_folders() -> tuple[tuple[str, int], ...]:
    found = []
    for folder in _path():
        try:
            found.append((folder, os.stat(folder or ".").st_mtime_ns))
        except OSError:
            continue
    return tuple(found)


def _install(packages: dict[str, str]) -> str:
    """Empty if all is well, else pip's last lines."""
    pins = [f"{name}=={version}" for name, version in packages.items()]
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--retries", "1", *pins]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=INSTALL_S,
        )
    except subprocess.TimeoutExpired:
        return f"pip was not done after {INSTALL_S} s"
    if not done.returncode:
        return ""
    return " ".join(done.stdout.strip().splitlines()[-LAST_LINES:])
