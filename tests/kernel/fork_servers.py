"""A fork server of a test's own, and in this process's environment what a host on its node has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from mlcloud.cluster import warmth
from tests.live import ROOT, until

MODULE = """
import os
PID = os.getpid()
os.environ["MADE_BY_IMPORT"] = "yes"
"""


class Served:
    """With a module `imported_once` (version 1.0) that knows the process which imported it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
        # Short: a unix socket's path ends at 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="mlc-"))
        self.path = self.folder / "s"
        site = self.folder / "site"
        site.mkdir()
        (site / "imported_once.py").write_text(MODULE)
        self.install("imported_once", "1.0")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(site)]))
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        monkeypatch.setenv(warmth.VARIABLE, str(self.path))
        monkeypatch.syspath_prepend(str(site))  # the host sees the same packages
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-Xfrozen_modules=off", "-m", "mlcloud.kernel.forkserver"),
                *(str(self.path), "numpy", "imported_once", *modules),
            ]
        )

    def install(self, name: str, version: str) -> None:
        site = self.folder / "site"
        for old in site.glob(f"{name}-*.dist-info"):
            shutil.rmtree(old)
        info = site / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    def __enter__(self) -> Served:
        until(self.path.exists, "the server listens", 30)
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
