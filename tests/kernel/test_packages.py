"""What a session's cells installed comes back with its state, and what cannot is named."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import textwrap
from pathlib import Path

import pytest

from mlcloud.kernel import overlay
from mlcloud.kernel.dump import dump_groups, restore
from mlcloud.kernel.packages import Packages
from mlcloud.kernel.versions import Versions
from tests.environment.projects import project, wheel_of


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python over this one, as a session's own environment is."""
    folder = tmp_path_factory.mktemp("overlay") / "it"
    field = {"pins": [], "requirements": [], "wheels": [], "store": ""}
    asyncio.run(overlay._make(folder, field, logging.getLogger(__name__)))
    return overlay._python(folder)


def test_a_packages_own_copies_of_others_were_not_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As setuptools puts its own on the path when `pkg_resources` is imported."""
    here = Packages()
    vendored = tmp_path / "site-packages" / "tools" / "_vendor"
    (vendored / "sounds-0.3.dist-info").mkdir(parents=True)
    (vendored / "sounds-0.3.dist-info" / "METADATA").write_text("Name: sounds\nVersion: 0.3\n")
    monkeypatch.syspath_prepend(str(vendored))
    assert here.installed() == {}


def test_installed_packages_are_found_and_brought_back(python: Path, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheel = wheel_of(project(tmp_path / "sounds", name="sounds", version="0.3"), wheels)
    code = f"""
        import json, subprocess, sys
        from mlcloud.kernel.packages import Packages
        here = Packages()
        before = dict(here.installed())
        pip = [sys.executable, "-m", "pip", "--quiet"]
        subprocess.run([*pip, "install", {str(wheel)!r}], check=True)
        found = dict(here.installed())
        subprocess.run([*pip, "uninstall", "--yes", "sounds"], check=True)
        fresh = Packages()
        failed = fresh.bring_back({{**found, "nosuch": "1.0"}})
        import sounds
        print(json.dumps([before, found, sounds.VERSION, list(failed), dict(fresh.installed())]))
    """
    settings = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}
    done = subprocess.run(
        [python, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={**os.environ, **settings, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr
    before, found, version, failed, again = json.loads(done.stdout)
    assert before == {}
    assert found == {"sounds": "0.3"}
    assert version == "0.3"
    assert failed == ["nosuch"], "one that cannot be had does not keep the others away"
    assert again == {"sounds": "0.3"}, "the next snapshot names it too"


def test_a_missing_package_costs_only_what_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib
    import sys

    (tmp_path / "gone.py").write_text("class Thing:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    gone = importlib.import_module("gone")
    namespace = {"gone": gone, "thing": gone.Thing(), "x": [1, 2], "json": json}
    dumped = dump_groups(Versions(namespace))
    monkeypatch.undo()
    del sys.modules["gone"]
    importlib.invalidate_caches()
    fresh: dict[str, object] = {}
    missing = restore(Versions(fresh), dumped.groups, dumped.imports)
    assert fresh["x"] == [1, 2]
    assert fresh["json"] is json
    assert set(missing) == {"gone", "thing"}
    assert all("'gone'" in why for why in missing.values())
