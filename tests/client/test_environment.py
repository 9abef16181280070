"""The notebook's packages and the session's: compared before anything is spent, and sent along.

The packages are small ones of our own, built here: only the test marked `slow` needs an index.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from blake3 import blake3

import mlcloud
from mlcloud import environment, errors
from mlcloud.client.environments import EnvironmentWarning
from mlcloud.client.session import Session
from mlcloud.environment import facts
from mlcloud.kernel import overlay
from tests.environment.projects import installed_in, project, wheel_of
from tests.live import Embedded, events, open_notebook, printed, stories

pytestmark = pytest.mark.cluster

MakeSession = Callable[..., Session]
CODE = """
class Square:
    def __init__(self, side):
        self.side = side
    def area(self):
        return self.side ** 2 * {factor}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`shapes` 1.0, installed here as an editable package; `root / "shapes"` is its source."""
    root = tmp_path_factory.mktemp("environment")
    source = project(root / "shapes", code=CODE.format(factor=1))
    with installed_in(root / "site", "--editable", str(source)):
        facts._owner.cache_clear()
        yield root
    facts._owner.cache_clear()


@pytest.fixture(scope="module")
def shapes(root: Path) -> ModuleType:
    return importlib.import_module("shapes")


@pytest.fixture(scope="module")
def captured(cluster: Embedded, root: Path, shapes: ModuleType) -> Iterator[Session]:
    """A session with this notebook's `shapes`."""
    env = environment.capture(include=["shapes"])
    session = cluster.connect().session("captured", environment=env, namespace={})
    yield session
    session.close()


def asked_for_nothing(session: Session) -> bool:
    """Whether no node was asked for, nor anything journaled."""
    return session.state == "starting" and session.info.node is None and events(session) == []


# --- at connect -----------------------------------------------------------------------------------


def test_another_python_is_refused_at_connect(
    cluster: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = cluster.connect() and cluster.connection
    here = facts.report()
    monkeypatch.setattr(facts, "report", lambda *_: replace(here, python="3.99.1"))
    with pytest.raises(errors.EnvironmentMismatch) as refused:
        mlcloud.connect(connection["url"], token=connection["token"])
    for part in ("3.99.1", here.python, "bytecode"):
        assert part in str(refused.value)
    monkeypatch.setenv("MLCLOUD_ENVIRONMENT_CHECK", "warn")
    with pytest.warns(EnvironmentWarning, match=r"3\.99\.1"):
        mlcloud.connect(connection["url"], token=connection["token"])
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mlcloud.connect(connection["url"], token=connection["token"])
    mlcloud.connect()


def test_another_protocol_is_refused_and_another_ipython_is_not(
    cluster: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = cluster.connect() and cluster.connection
    here = facts.report()
    with monkeypatch.context() as patch:
        patch.setattr(facts, "report", lambda *_: replace(here, api="99"))
        with pytest.raises(errors.VersionMismatch, match="API 99"):
            mlcloud.connect(connection["url"], token=connection["token"])
    older = replace(here, packages={**here.packages, "ipython": "7.34.0"})
    monkeypatch.setattr(facts, "report", lambda *_: older)
    with pytest.warns(EnvironmentWarning, match=r"ipython is 7\.34\.0 here.*%pip install"):
        mlcloud.connect(connection["url"], token=connection["token"])
    mlcloud.connect()


# --- when objects cross the wire ------------------------------------------------------------------


def test_a_package_that_the_nodes_lack_is_refused_before_a_node_is_asked_for(
    shapes: ModuleType, session: MakeSession
) -> None:
    plain = session(namespace={"square": shapes.Square(3)})
    with pytest.raises(errors.EnvironmentMismatch) as refused:
        plain.run("square.area()")
    for part in ("`square`", "shapes 1.0", "capture"):
        assert part in str(refused.value)
    with pytest.raises(errors.EnvironmentMismatch):
        plain["other"] = shapes.Square(4)
    assert asked_for_nothing(plain)


def test_another_major_version_is_refused_before_a_node_is_asked_for(
    root: Path, shapes: ModuleType, session: MakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = project(root / "newer", version="2.0", code=CODE.format(factor=2))
    other = session(environment=[newer], namespace={"square": shapes.Square(3), "x": 1})
    with pytest.raises(errors.EnvironmentMismatch, match=r"shapes 1\.0.* has 2\.0"):
        other.run("square.area()")
    assert asked_for_nothing(other)
    table = {row.package: row for row in other.environment.rows}
    assert table["shapes"].there == "2.0"
    assert table["shapes"].verdict.value == "matters"
    assert "once it is on a node" in repr(other.environment)


def test_a_function_is_refused_for_what_it_carries(
    shapes: ModuleType, session: MakeSession
) -> None:
    namespace: dict[str, object] = {"__name__": "__main__", "Square": shapes.Square}
    exec("def make(kind=Square): return kind(2)", namespace)
    plain = session(namespace=namespace)
    with pytest.raises(errors.EnvironmentMismatch, match="shapes"):
        plain.run("make()")
    assert asked_for_nothing(plain)


# --- an environment of a session's own ------------------------------------------------------------


def test_an_editable_package_goes_along(captured: Session, shapes: ModuleType) -> None:
    captured._side.namespace["square"] = shapes.Square(3)
    captured.run("square.side += 1\nprint('area', square.area())")
    assert "area 16" in printed(captured)
    square = captured._side.namespace["square"]
    assert isinstance(square, shapes.Square)
    assert square.side == 4, "and its objects come back as this notebook's"
    captured.run("import shapes, sys; print(sys.prefix, shapes.__file__)")
    prefix, _, file = printed(captured).splitlines()[-1].partition(" ")
    assert file.startswith(prefix)
    assert prefix != sys.prefix
    assert "shapes 1.0 as a wheel" in captured.info.environment


def test_the_rest_is_the_nodes_own(captured: Session) -> None:
    captured.run("import numpy, ray; print('own', numpy.__file__, ray.__version__)")
    import numpy
    import ray

    assert f"own {numpy.__file__} {ray.__version__}" in printed(captured)


def test_an_edited_package_is_seen_by_the_next_capture_side_by_side(
    root: Path, captured: Session, shapes: ModuleType, session: MakeSession
) -> None:
    project(root / "shapes", version="1.1", code=CODE.format(factor=10))
    env = environment.capture(include=["shapes"])
    edited = session(environment=env, namespace={"square": shapes.Square(3)})
    edited.run("print('edited', square.area())")
    assert "edited 90" in printed(edited)
    captured.run("print('before', shapes.Square(3).area())")
    assert "before 9" in printed(captured)


def test_a_minor_version_is_a_warning_shown_once(
    root: Path, shapes: ModuleType, session: MakeSession, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = project(root / "minor", version="1.4", code=CODE.format(factor=1))
    minor = session(environment=[newer], namespace={"square": shapes.Square(3)})
    minor.run("square.area()", quiet=True)
    shown = [line for line in capsys.readouterr().err.splitlines() if "⚠" in line]
    [warning] = shown
    for part in ("shapes is 1.0 here", "1.4", "`square`", "%pip install"):
        assert part in warning
    minor._side.namespace["square"] = shapes.Square(5)
    minor._side.namespace["second"] = shapes.Square(6)
    minor.run("square.area() + second.area()", quiet=True)
    assert "⚠" not in capsys.readouterr().err


def test_what_a_cell_installs_is_seen(root: Path, captured: Session) -> None:
    sounds = project(root / "sounds", name="sounds", version="0.3", code="def cry(): return 'ah'\n")
    wheel = wheel_of(sounds, root / "out")
    assert "sounds" not in captured._environment._ask().packages
    captured.run(f"%pip install --quiet --no-index {wheel}")
    captured.run("import sounds; print('sounds', sounds.cry(), sounds.__file__)")
    assert "sounds ah" in printed(captured)
    facts_now = captured._environment._ask()
    assert facts_now.packages["sounds"] == "0.3"
    captured.run("!pip uninstall --quiet --yes sounds")
    assert "sounds" not in captured._environment._ask().packages


def test_it_is_there_again_after_parking(captured: Session) -> None:
    captured.run("import shapes\nsquare = shapes.Square(7)")
    captured.park()
    captured.run("print('again', square.area())")
    assert "again 49" in printed(captured)


@pytest.mark.slow
def test_a_package_that_went_with_its_node_costs_only_what_needs_it(
    root: Path, captured: Session
) -> None:
    birds = project(root / "birds", name="birds", version="0.1")
    captured.run(f"%pip install --quiet --no-index {wheel_of(birds, root / 'birds-out')}")
    captured.run("import birds\nkept = 12")
    captured.run("!pip uninstall --quiet --yes birds")
    captured.park()
    captured.run("print('kept', kept, 'birds' in globals())")
    assert "kept 12 False" in printed(captured)
    assert "birds" in stories(captured)["not_restored"]


def test_a_name_has_one_environment(cluster: Embedded, captured: Session) -> None:
    client = cluster.connect()
    assert client.session(captured.name).id == captured.id
    with pytest.raises(errors.Conflict, match=r"another environment \(shapes 1\.0 as a wheel\)"):
        client.session(captured.name, environment=["six"])


def test_a_whole_capture_installs_only_what_the_nodes_lack(
    root: Path, session: MakeSession
) -> None:
    whole = session(environment="capture", namespace={})
    began = time.monotonic()
    whole.run("import shapes, pandas, os; print('whole', pandas.__file__, shapes.__file__)")
    assert time.monotonic() - began < 120
    import pandas

    assert f"whole {pandas.__file__}" in printed(whole)


# --- what cannot be made --------------------------------------------------------------------------


def test_a_pin_that_does_not_exist_fails_once_and_says_so(
    cluster: Embedded, session: MakeSession
) -> None:
    broken = session(environment=["mlcloud-no-such-package==9.9"], namespace={})
    with pytest.raises(errors.EnvironmentFailed) as failed:
        broken.run("1")
    text = str(failed.value)
    assert "No matching distribution found for mlcloud-no-such-package==9.9" in text
    assert "Traceback" not in text
    assert isinstance(failed.value, errors.SessionFailed)
    asked = [each for each in events(broken) if "asking" in each["content"].get("text", "")]
    assert len(asked) == 1, "what one node cannot install, the next cannot either"
    assert broken.info.node is None


def test_a_wheel_is_checked_before_it_is_installed(
    cluster: Embedded, root: Path, session: MakeSession
) -> None:
    data = wheel_of(project(root / "other", name="other"), root / "other-out").read_bytes()
    digest = blake3(data).hexdigest()
    wheel = {"name": "other-1.0-py3-none-any.whl", "digest": "0" * 64}
    with cluster.http() as http:
        assert http.put(f"/v1/objects/{digest}", content=data).status_code == 204
        body = {
            "name": "swapped",
            "environment": {
                "python": facts.report().minor,
                "wheels": [{**wheel, "objects": [f"{digest}:{len(data)}"]}],
            },
        }
        assert http.post("/v1/sessions", json=body).status_code == 200
    swapped = cluster.connect().attach("swapped")
    try:
        with pytest.raises(errors.EnvironmentFailed, match="not the one that was captured"):
            swapped.run("1")
    finally:
        swapped.close()


@pytest.mark.parametrize(
    ("spec", "status", "code", "says"),
    [
        ({"python": "3.99"}, 409, "EnvironmentMismatch", "3.99"),
        ({"requirements": ["not a requirement"]}, 422, "UsageError", "not a requirement"),
        ({"requirements": ["--index-url=https://example.org"]}, 422, "UsageError", "requirements"),
        ({"pins": ["a==1\n--pre"]}, 422, "UsageError", "pins"),
        ({"wheels": ["x-1.0-cp27-cp27m-win32.whl"]}, 409, "EnvironmentMismatch", "another system"),
        ({"wheels": ["nonsense.whl"]}, 422, "UsageError", "nonsense"),
        ({"wheels": ["../x-1-py3-none-any.whl"]}, 422, "UsageError", "name"),
    ],
)
def test_what_no_node_could_make_is_refused_at_once(
    cluster: Embedded, spec: dict[str, object], status: int, code: str, says: str
) -> None:
    cluster.connect()
    body = {"python": facts.report().minor, **spec}
    names = body.get("wheels", [])
    assert isinstance(names, list)
    body["wheels"] = [{"name": name, "digest": "0" * 64, "objects": []} for name in names]
    with cluster.http() as http:
        answer = http.post("/v1/sessions", json={"name": "never", "environment": body})
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert says in answer.json()["message"]
        assert http.get("/v1/sessions/never").status_code == 404


def test_what_would_break_the_session_itself_is_named(tmp_path: Path) -> None:
    info = overlay._packages(tmp_path) / "cloudpickle-1.0.dist-info"
    info.mkdir(parents=True)
    [broken] = overlay._broken(tmp_path)
    assert broken == "mlcloud needs cloudpickle>=3.0, not 1.0"


# --- as a user sees it ----------------------------------------------------------------------------


def test_in_a_notebook(cluster: Embedded, root: Path) -> None:
    with open_notebook(cluster) as notebook:
        shown = notebook.ok("%mlcloud env").shown[0]
        assert "cluster's nodes" in shown["text/plain"]
        assert "<table>" in shown["text/html"]
        notebook.ok(
            f"import sys; sys.path.insert(0, {str(root / 'site')!r})\n"
            f"sys.path.insert(0, {str(root / 'shapes')!r})\nimport mlcloud, numpy, shapes\n"
            "s = mlcloud.session()\nsquare = shapes.Square(2)"
        )
        cell = notebook.run("%%remote\nsquare.area()")
        assert cell.error["ename"] == "EnvironmentMismatch"
        assert len(cell.error["traceback"]) == 1
        text = notebook.ok("%mlcloud env").shown[0]["text/plain"]
        lines = {line.split()[0]: line for line in text.splitlines()}
        assert "same" in lines["numpy"]
        assert "missing there" in lines["shapes"]
        assert "torch" not in lines
        assert "torch" in notebook.ok("%mlcloud env --all").shown[0]["text/plain"]
        assert notebook.run("%mlcloud env nosuch").error["ename"] == "NotFound"
        notebook.ok("s.close()")


def test_importing_mlcloud_brings_the_name_and_nothing_heavy() -> None:
    code = (
        "import sys, mlcloud\nassert 'environment' in dir(mlcloud)\n"
        "assert not [m for m in sys.modules if m.startswith('mlcloud.environment')]\n"
        "mlcloud.environment.capture\n"
        "print(sorted({'ray', 'torch', 'numpy', 'pydantic', 'httpx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_package_of_the_index_that_is_not_installed_here(
    tmp_path: Path, session: MakeSession
) -> None:
    pin = "humanize==4.9.0"
    fetch = ["download", "--quiet", "--no-deps", "--retries", "0", "--dest", str(tmp_path), pin]
    if subprocess.run([sys.executable, "-m", "pip", *fetch], capture_output=True).returncode:
        pytest.skip(f"no index can be reached that has {pin}")
    with pytest.raises(ImportError):
        importlib.import_module("humanize")
    by_pin = session(environment=[pin], namespace={})
    by_pin.run("import humanize; print('pinned', humanize.__version__, humanize.naturalsize(1e6))")
    assert "pinned 4.9.0 1.0 MB" in printed(by_pin)
