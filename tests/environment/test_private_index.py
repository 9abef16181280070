"""A package index with a password, and a lock: from a specification to the nodes' packages, and the
password nowhere but in one file that only its owner may read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mlcloud
from mlcloud.client.packages import of_specification
from mlcloud.cluster.specification import specify
from mlcloud.environment import index
from mlcloud.environment.requirements_lock import read_lock
from mlcloud.errors import EnvironmentFailed, SecretMissing, UsageError
from mlcloud.gateway.given import Given
from mlcloud.models import EnvironmentSpec, SessionRequest
from tests.environment.index_server import CommandLines, Index, found_in
from tests.environment.projects import project, wheel_of
from tests.live import Embedded

USER, PASSWORD = "build", "p@ss/w:rd 9$Kq"
ENCODED = "p%40ss%2Fw%3Ard%209%24Kq"


def test_pip_is_told_by_a_file_of_its_owners(tmp_path: Path) -> None:
    urls = ["https://${USER}:${PW}@one.example/simple", "http://${USER}@two.example:81/simple"]
    assert index.names(urls) == ["USER", "PW"]
    text = index.pip_conf(urls, {"USER": USER, "PW": PASSWORD})
    assert text.splitlines() == [
        "[global]",
        f"index-url = https://build:{ENCODED}@one.example/simple",
        "extra-index-url =",
        "    http://build@two.example:81/simple",
        "trusted-host =",
        "    two.example:81",
    ]
    path = tmp_path / index.FILE
    path.touch(mode=0o644)
    index.write(path, text)
    assert path.stat().st_mode & 0o777 == 0o600
    index.write(path, "")
    assert not path.exists()


def test_a_password_is_looked_up_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = specify(
        name="try",
        secrets={"PW": "env:INDEX_PASSWORD"},
        environment={"index_urls": ["https://me:${PW}@one.example/simple"]},
    )
    monkeypatch.delenv("INDEX_PASSWORD", raising=False)
    with pytest.raises(SecretMissing, match="index_urls: INDEX_PASSWORD is not in this notebook's"):
        of_specification(wanted)
    monkeypatch.setenv("INDEX_PASSWORD", PASSWORD)
    found = of_specification(wanted)
    assert ENCODED in found.pip_conf
    assert ENCODED not in repr(found)


def test_a_lock_is_every_package_with_its_version(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text(
        "# made by uv\n"
        "shapes==1.0 ; python_version >= '3.8'  # for drawing\n"
        "ray==2.60.0\n"
        "sounds @ https://example.com/sounds-2.0-py3-none-any.whl\n"
    )
    found = EnvironmentSpec.model_validate(read_lock(lock))
    assert found.pins == [
        "shapes==1.0 ; python_version >= '3.8'",
        "sounds @ https://example.com/sounds-2.0-py3-none-any.whl",
    ]
    assert found.requirements == found.pins, "what a lock forgot is found by name"
    lock.write_text("shapes==1.0 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n")
    found = EnvironmentSpec.model_validate(read_lock(lock))
    assert found.pins == ["shapes==1.0 --hash=sha256:aa --hash=sha256:bb"]
    assert found.requirements == [], "with hashes nothing else may come"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("shapes>=1.0\n", "shapes has no version: a lock says which"),
        ("shapes==1.*\n", "shapes has no version"),
        ("--index-url https://x/simple\nshapes==1\n", "write indexes under environment.index_urls"),
        ("a==1 --hash=sha256:aa\nb==2\n", "hashes for 1 of 2 packages: for all or for none"),
        ("not a requirement\n", "is no requirement"),
        ("\n", "names no package"),
    ],
)
def test_what_is_no_lock_is_refused(tmp_path: Path, text: str, words: str) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text(text)
    with pytest.raises(UsageError, match=f"environment.lock: .*{words}"):
        read_lock(lock)
    with pytest.raises(UsageError, match="cannot be read"):
        read_lock(tmp_path / "none.txt")


def test_a_session_has_the_lock_or_its_own() -> None:
    wanted = specify(name="try", environment={"lock": "lock.txt"})
    lock = EnvironmentSpec(python="3.11", pins=["shapes==1.0"])
    given = Given.of(wanted, lock)
    assert given.to(SessionRequest(name="s")).environment == lock
    own = SessionRequest(name="s", environment=EnvironmentSpec(python="3.11"))
    assert given.to(own) == own


@pytest.fixture
def private(tmp_path: Path) -> Iterator[Index]:
    wheels = tmp_path / "wheels"
    for version in ("1.0", "2.0"):
        wheel_of(project(tmp_path / version, name="sounds", version=version), wheels / version)
        for each in (wheels / version).iterdir():
            each.rename(wheels / each.name)
    made = Index(wheels, USER, PASSWORD)
    yield made
    made.close()


@pytest.mark.cluster
def test_a_session_has_the_packages_of_the_lock(
    own_cluster: Callable[..., Embedded],
    private: Index,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    embedded = own_cluster(node_idle="30s")
    monkeypatch.setenv("INDEX_USER", USER)
    monkeypatch.setenv("INDEX_PASSWORD", PASSWORD)
    lock = tmp_path / "lock.txt"
    lock.write_text("sounds==1.0\n")
    wanted: dict[str, Any] = {
        "secrets": {"INDEX_USER": "env:INDEX_USER", "INDEX_PASSWORD": "env:INDEX_PASSWORD"},
        "environment": {
            "index_urls": [f"http://${{INDEX_USER}}:${{INDEX_PASSWORD}}@{private.host}/simple"],
            "lock": str(lock),
        },
    }
    told = CommandLines(PASSWORD, ENCODED)
    with told:
        mlcloud.Cluster("try", **wanted).up()
        client = embedded.connect()
        first = client.session("first", cpus=1, secrets=[], namespace={})
        first.run("import sounds\nversion, where = sounds.VERSION, sounds.__file__")
        assert first["version"] == "1.0"
        assert [each for each in private.asked if each.endswith("sounds-1.0-py3-none-any.whl")]
        # The same lock is the same environment, made once on a node.
        downloads = len([each for each in private.asked if each.startswith("/files/")])
        again = client.session("again", cpus=1, secrets=[], namespace={})
        again.run("import sounds\nwhere = sounds.__file__")
        if again.info.node == first.info.node:
            assert again["where"] == first["where"]
            assert downloads == len([e for e in private.asked if e.startswith("/files/")])

        # The same file with other packages in it: for sessions that are made from now on.
        lock.write_text("sounds==2.0\n")
        mlcloud.Cluster("try", **wanted).up()
        second = client.session("second", cpus=1, secrets=[], namespace={})
        second.run("import sounds\nversion = sounds.VERSION")
        assert second["version"] == "2.0"
        first.run("import importlib; version = importlib.reload(sounds).VERSION")
        assert first["version"] == "1.0"

        # What is on no index fails in words that have no password in them.
        lock.write_text("sounds==3.0\n")
        mlcloud.Cluster("try", **wanted).up()
        third = client.session("third", cpus=1, secrets=[], namespace={})
        with pytest.raises(EnvironmentFailed, match=r"sounds==3\.0") as failed:
            third.run("import sounds")
    assert PASSWORD not in str(failed.value)
    assert ENCODED not in str(failed.value)
    assert told.seen > 0
    assert told.found == []
    kept = [embedded.home / index.FILE]
    assert found_in(embedded.home, embedded.settings.ray_dir, of=ENCODED) == kept
    assert found_in(embedded.home, embedded.settings.ray_dir, of=PASSWORD) == []
    assert (embedded.home / index.FILE).stat().st_mode & 0o777 == 0o600
    mlcloud.connect().cluster.down()
    assert not (embedded.home / index.FILE).exists()
