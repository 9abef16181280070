"""Capturing the local environment: what is pinned, what becomes a wheel, and what is in that."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlcloud import environment, errors
from mlcloud.environment import facts, wheels
from tests.environment.projects import installed_in, project, wheel_of


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Three packages of our own: one editable, one installed from a folder, one from a wheel."""
    root = tmp_path_factory.mktemp("packages")
    editable = project(root / "shapes", code="def area(): return 6\n")
    installed = project(root / "colours", name="colours", version="2.1")
    with open(installed / "pyproject.toml", "a") as file:
        file.write('[tool.setuptools.data-files]\n"share/colours" = ["palette.txt"]\n')
    text = (installed / "pyproject.toml").read_text()
    script = '[project.scripts]\npaint = "colours:main"\n[tool.setuptools]\n'
    (installed / "pyproject.toml").write_text(text.replace("[tool.setuptools]\n", script))
    (installed / "colours.py").write_text("def main(): print('painted')\n")
    (installed / "palette.txt").write_text("red\n")
    third = wheel_of(project(root / "sounds", name="sounds", version="0.3"), root / "out")
    with installed_in(root / "site", "--editable", str(editable), str(installed), str(third)):
        facts._owner.cache_clear()
        yield root
    facts._owner.cache_clear()


def captured(name: str) -> environment.Package:
    [package] = environment.capture(include=[name]).packages
    return package


# --- what becomes of each kind --------------------------------------------------------------------


def test_a_package_of_an_index_is_a_pin() -> None:
    package = captured("msgpack")
    assert package.source == "index"
    assert package.requirement == f"msgpack=={package.version}"
    assert not package.wheel


def test_an_editable_package_is_a_wheel_of_its_source(place: Path) -> None:
    package = captured("shapes")
    assert (package.source, package.version) == ("editable", "1.0")
    assert package.where == str(place / "shapes")
    assert package.path is not None
    with zipfile.ZipFile(package.path) as wheel:
        assert wheel.read("shapes.py") == b"def area(): return 6\n"
    left = {path.name for path in (place / "shapes").iterdir()}
    assert not left & {"build", "dist"}, "building leaves nothing in the source"


def test_an_unchanged_source_is_not_built_again_and_a_changed_one_is(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = captured("shapes")
    with monkeypatch.context() as patch:
        patch.setattr(wheels, "_build", lambda *_: pytest.fail("it was built again"))
        (place / "shapes" / "__pycache__").mkdir(exist_ok=True)
        (place / "shapes" / "__pycache__" / "shapes.pyc").write_bytes(b"\0")
        assert captured("shapes") == first
    source = place / "shapes" / "shapes.py"
    before = source.read_text()
    source.write_text("def area(): return 7\n")
    try:
        second = captured("shapes")
    finally:
        source.write_text(before)
    assert second.version == first.version
    assert second.digest != first.digest
    assert captured("shapes") == first, "the source is as it was, and so is the wheel"
    one, two = (environment.Environment("3.11", "x", (each,)) for each in (first, second))
    [difference] = one.diff(two)
    assert difference.name == "shapes"
    assert difference.here != difference.there


@pytest.mark.parametrize("name", ["colours", "sounds"])
def test_a_local_package_is_the_wheel_it_came_from(place: Path, name: str, tmp_path: Path) -> None:
    package = captured(name)
    assert package.source == "local"
    assert package.path is not None
    target = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", target], check=True)
    python = str(target / "bin" / "python")
    install = ["--python", python, "install", "--no-index", "--no-deps", str(package.path)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *install],
        capture_output=True,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert subprocess.run([python, "-c", f"import {name}"]).returncode == 0
    if name == "colours":
        said = subprocess.run([target / "bin" / "paint"], capture_output=True, text=True)
        assert said.stdout == "painted\n"
        assert (target / "share" / "colours" / "palette.txt").read_text() == "red\n"


def test_a_local_package_whose_files_are_gone_is_named(place: Path) -> None:
    file = place / "site" / "sounds.py"
    text = file.read_bytes()
    wheels.cache.wheel_folder().joinpath("sources").mkdir(parents=True, exist_ok=True)
    for note in wheels.cache.wheel_folder().joinpath("sources").iterdir():
        note.unlink()
    file.unlink()
    try:
        with pytest.raises(errors.EnvironmentFailed, match=r"sounds 0\.3 .*exclude="):
            environment.capture(include=["sounds"])
    finally:
        file.write_bytes(text)


def fake(folder: Path, name: str, version: str, url: object = None, installer: str = "pip") -> None:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "INSTALLER").write_text(installer)
    if url is not None:
        (info / "direct_url.json").write_text(json.dumps(url))


@pytest.mark.parametrize(
    ("version", "url", "installer", "requirement"),
    [
        ("2.13.0+cpu", None, "pip", "thing==2.13.0"),
        (
            "1.0",
            {
                "url": "https://example.org/thing.git",
                "vcs_info": {"vcs": "git", "commit_id": "0123abcd"},
                "subdirectory": "python",
            },
            "pip",
            "thing @ git+https://example.org/thing.git@0123abcd#subdirectory=python",
        ),
        (
            "1.0",
            {"url": "https://example.org/t.whl", "archive_info": {"hashes": {"sha256": "ab"}}},
            "uv",
            "thing @ https://example.org/t.whl#sha256=ab",
        ),
        (
            "1.0",
            {"url": "file:///home/conda/feedstock_root/thing", "dir_info": {}},
            "conda",
            "thing==1.0",
        ),
    ],
)
def test_where_it_came_from_is_where_a_node_gets_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: str,
    url: object,
    installer: str,
    requirement: str,
) -> None:
    fake(tmp_path, "thing", version, url, installer)
    monkeypatch.syspath_prepend(str(tmp_path))
    package = captured("thing")
    assert (package.requirement, package.version) == (requirement, version)


# --- which packages -------------------------------------------------------------------------------


def test_everything_but_installers_is_captured(place: Path) -> None:
    env = environment.capture()
    names = {package.name for package in env.packages}
    assert {"numpy", "shapes", "colours", "sounds"} <= names
    assert "pip" not in names
    assert env.version("colours") == "2.1"
    assert len(env.wheels) == 3
    assert {"shapes", "numpy"}.isdisjoint(
        package.name for package in environment.capture(exclude=["shapes", "NumPy"]).packages
    )


def test_a_package_brings_what_it_needs() -> None:
    names = {package.name for package in environment.capture(include=["pandas"]).packages}
    assert {"pandas", "numpy", "python-dateutil", "six"} <= names
    assert "torch" not in names


def test_a_name_that_is_not_there_is_an_error() -> None:
    with pytest.raises(errors.UsageError, match="nosuch"):
        environment.capture(include=["nosuch"])


def test_by_requirement(tmp_path: Path) -> None:
    wheel = wheel_of(project(tmp_path / "shapes", version="4.0"), tmp_path / "out")
    file = tmp_path / "requirements.txt"
    file.write_text(
        f"# what we use\npolars==1.9  # frames\nrich>=13 ; \\\n  python_version>'3'\n{wheel}\n"
    )
    env = environment.of(file)
    assert env.requirements == ("polars==1.9", 'rich>=13; python_version > "3"', "shapes==4.0")
    assert [path.name for path in env.wheels] == [wheel.name]
    assert environment.of([wheel]) == environment.of([str(wheel)])
    assert "polars==1.9" in env.summary
    assert "shapes 4.0 as a wheel" in env.summary


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["--index-url https://example.org"], "options"),
        (["polars=1.9"], "polars=1.9"),
        (["./nowhere"], "no nowhere"),
        (["nowhere.whl"], "no wheel"),
        ("nowhere.txt", "requirements file"),
    ],
)
def test_what_is_no_requirement_is_explained(lines: object, says: str) -> None:
    with pytest.raises(errors.UsageError, match=says):
        environment.of(lines)  # type: ignore[arg-type]


def test_a_module_beside_the_notebook_is_a_wheel_named_by_its_content(tmp_path: Path) -> None:
    module, package = tmp_path / "helpers.py", tmp_path / "more"
    module.write_text("X = 1\n")
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "inner" / "table.csv").write_text("a,b\n")
    first = environment.of([module, str(package)])
    assert first.requirements == (), "they need nothing from an index"
    with zipfile.ZipFile(first.wheels[1]) as wheel:
        assert {"more/__init__.py", "more/inner/table.csv"} <= set(wheel.namelist())
    assert environment.of([module, package]) == first
    module.write_text("X = 2\n")
    assert environment.of([module]).packages[0].version != first.packages[0].version


def test_a_folder_without_a_project_is_explained(tmp_path: Path) -> None:
    with pytest.raises(errors.UsageError, match=r"pyproject\.toml"):
        environment.of([tmp_path])


def test_a_build_that_fails_says_why(tmp_path: Path) -> None:
    folder = project(tmp_path / "shapes")
    (folder / "setup.py").write_text("raise SystemExit('the compiler is on strike')\n")
    with pytest.raises(errors.EnvironmentFailed, match=r"(?s)shapes.*the compiler is on strike"):
        environment.of([folder])


# --- the lock as data -----------------------------------------------------------------------------


def test_a_lock_is_json_and_comes_back_equal(place: Path) -> None:
    env = environment.capture(include=["shapes", "pandas"], extra=["rich>=13"])
    again = environment.Environment.from_json(env.to_json())
    assert again == env
    assert again.digest == env.digest
    assert again.wheels == env.wheels
    assert "shapes" in repr(env)
    assert "<table>" in env._repr_html_()
    with pytest.raises(AttributeError):
        env.python = "2.7"  # type: ignore[misc]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"mlcloud-environment": 99}'])
def test_another_file_is_no_lock(text: str) -> None:
    with pytest.raises(errors.UsageError):
        environment.Environment.from_json(text)


def test_a_wheel_that_the_cache_lost_is_named(tmp_path: Path) -> None:
    package = environment.Package("gone", "1", "local", "", "gone-1-py3-none-any.whl", "0" * 64)
    with pytest.raises(errors.NotFound, match=r"gone 1.*again"):
        _ = environment.Environment("3.11", "linux", (package,)).wheels


# --- whose module is it ---------------------------------------------------------------------------


def test_the_owner_of_a_module(place: Path) -> None:
    import sklearn.linear_model

    for name in ("shapes", "colours", "yaml", "dateutil.tz"):
        importlib.import_module(name)
    assert facts.owner(sklearn.linear_model.LinearRegression.__module__) == "scikit-learn"
    assert facts.owner("yaml") == "pyyaml"
    assert facts.owner("dateutil.tz") == "python-dateutil"
    assert facts.owner("shapes") == "shapes", "editable: its file is in no site-packages"
    assert facts.owner("colours") == "colours"
    assert facts.owner("json") is None
    assert facts.owner("__main__") is None


def test_a_package_installed_meanwhile_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "thing" not in facts.report().packages
    fake(tmp_path, "thing", "1.0")
    assert facts.report().packages["thing"] == "1.0"


def test_facts_are_cheap_and_import_nothing() -> None:
    code = textwrap.dedent(
        """
        import sys, time
        from mlcloud.environment import facts
        facts.report(["torch"])
        began = time.process_time()
        found = facts.report(["torch", "nosuch"])
        print(time.process_time() - began, found.importable, "torch" in sys.modules)
        """
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, rest = done.stdout.split(" ", 1)
    assert float(seconds) < 0.05
    assert rest.strip() == "{'torch': True, 'nosuch': False} False"
