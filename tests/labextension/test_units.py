"""The extension's own tests, those of TypeScript's units, and what a wheel carries of it."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
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


def test_jupyter_finds_it(tmp_path: Path) -> None:
    """As `jupyter labextension list` and `jupyter server extension list` do."""
    needs_extension()
    environment = with_extension(tmp_path, {**os.environ, "PYTHONPATH": str(ROOT)})
    for words, found in [
        (["labextension", "list"], "mlcloud v0.1.0"),
        (["server", "extension", "list"], "mlcloud.labserver"),
    ]:
        command = [sys.executable, "-m", "jupyter", *words]
        told = subprocess.run(command, capture_output=True, text=True, env=environment)
        lines = [line for line in (told.stdout + told.stderr).splitlines() if found in line]
        assert lines, told.stdout + told.stderr
        assert any("enabled" in line or "OK" in line for line in lines)


def test_no_registry_is_named_in_the_lock() -> None:
    lock = (FOLDER / "yarn.lock").read_text()
    assert "http://" not in lock
    assert "https://" not in lock
    assert json.loads((FOLDER / "package.json").read_text())["version"] == "0.1.0"
