"""The extension's own tests, those of TypeScript's units, and what a wheel carries of it."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.browser.lab import EXTENSION, ROOT, needs_extension, with_extension

FOLDER = ROOT / "labextension"
MOST_GZIP = 50_000


def test_typescript_units() -> None:
    needs_extension()
    vitest = FOLDER / "node_modules" / "vitest" / "vitest.mjs"
    node = shutil.which("node")
    if node is None or not vitest.exists():
        pytest.skip("the extension was built elsewhere: `jlpm install` in labextension")
    told = subprocess.run(
        [node, str(vitest), "run"], cwd=FOLDER, capture_output=True, text=True, timeout=120
    )
    assert told.returncode == 0, told.stdout + told.stderr


def test_it_is_small() -> None:
    needs_extension()
    scripts = list((EXTENSION / "static").glob("*.js"))
    assert scripts
    assert sum(len(gzip.compress(each.read_bytes())) for each in scripts) < MOST_GZIP


def test_jupyterlab_finds_it(tmp_path: Path) -> None:
    """By the function that JupyterLab asks. That its server's part is switched on, the tests of
    `labserver` show: they ask its routes."""
    from jupyterlab_server.config import get_federated_extensions

    needs_extension()
    share = with_extension(tmp_path, {})["JUPYTER_PATH"]
    found = get_federated_extensions([f"{share}/labextensions"])["mlcloud"]
    assert found["jupyterlab"]["_build"]["load"].startswith("static/remoteEntry.")
    assert (EXTENSION / found["jupyterlab"]["_build"]["load"]).exists()


def test_no_registry_is_named_in_the_lock() -> None:
    lock = (FOLDER / "yarn.lock").read_text()
    assert "http://" not in lock
    assert "https://" not in lock
    assert json.loads((FOLDER / "package.json").read_text())["version"] == "0.1.0"
