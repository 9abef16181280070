"""What every test shares: a home of its own, so that no test sees or leaves the user's state, and
for those that need the running system one embedded cluster a worker, taken down at the end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# Read where gcsfs is first imported: else it asks emulators by gRPC, a minute for each call.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

if TYPE_CHECKING:
    from mlcloud.client.api import Client
    from mlcloud.client.session import Session
    from tests.live import Embedded


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """A failed test tells what its clusters were doing."""
    outcome: Any = yield
    report = outcome.get_result()
    live = sys.modules.get("tests.live")
    if report.when == "call" and report.failed and live is not None:
        for embedded in live.Embedded.all:
            report.sections.append((f"cluster {embedded.home}", embedded.told()))


@pytest.fixture(scope="session", autouse=True)
def mlcloud_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`MLCLOUD_HOME` in an empty folder for the whole session (one for each xdist worker)."""
    home = tmp_path_factory.mktemp("mlcloud-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLCLOUD_HOME", str(home))
        yield str(home)


@pytest.fixture(scope="module", autouse=True)
def _own_names() -> Iterator[None]:
    """A session that is attached without a namespace binds names in `__main__`, which another
    file's sessions would send."""
    names = vars(sys.modules["__main__"])
    before = dict(names)
    yield
    names.clear()
    names.update(before)


@pytest.fixture(scope="session")
def cluster(mlcloud_home: str) -> Iterator[Embedded]:
    """The worker's embedded cluster. A test may kill any part of it: the next one finds it again.

    At the end it is taken down, and no process of it may be left.
    """
    from tests.live import Embedded

    # Drills take back more nodes within minutes than there are offers.
    options = {"max_nodes": "6", "node_idle": "20s", "offer_cooldown": "20s"}
    with Embedded(Path(mlcloud_home), **options) as embedded:
        yield embedded


@pytest.fixture
def client(cluster: Embedded) -> Client:
    return cluster.connect()


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[Callable[..., Embedded]]:
    """Makes a cluster of the test's own, with settings of its own: `own_cluster(idle_end="3s")`."""
    from contextlib import ExitStack

    from tests.live import Embedded

    with ExitStack() as stack:

        def make(name: str = "home", **settings: str) -> Embedded:
            home = tmp_path / name
            home.mkdir()
            return stack.enter_context(Embedded(home, **settings))

        yield make


@pytest.fixture
def session(cluster: Embedded, request: pytest.FixtureRequest) -> Iterator[Callable[..., Session]]:
    """Makes sessions named after the test, with a namespace of their own; closed at its end."""
    made: list[Session] = []

    def make(name: str = "", **options: Any) -> Session:
        options.setdefault("namespace", {})
        title = "".join(c if c.isalnum() else "-" for c in request.node.name)[:50]
        made.append(cluster.connect().session(f"{title}-{name or len(made)}", **options))
        return made[-1]

    yield make
    for each in made:
        cluster.connect().attach(each.name).close()
