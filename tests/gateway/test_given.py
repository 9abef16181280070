"""What a specification gives to every session: secrets and data, with the session's own before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mlcloud
from mlcloud.cluster.specification import specify
from mlcloud.errors import Conflict, SecretMissing
from mlcloud.gateway.given import Given
from mlcloud.models import DataMount, SessionRequest
from tests.live import Embedded

VALUE = "tk_" + "9sKdQ2vLxW7mN4pR8tYc"  # so that it is not in this text
GIVEN = Given.of(
    specify(
        name="try",
        secrets={"HF_TOKEN": "env:MINE", "OTHER": "env:OTHER"},
        data=[{"url": "s3://b/x", "path": "/data"}, {"url": "s3://b/y", "path": "/more"}],
    )
)


def request(**fields: Any) -> SessionRequest:
    return SessionRequest.model_validate({"name": "s", **fields})


def test_the_sessions_own_come_before_those_of_the_specification() -> None:
    own = request(
        secrets={"HF_TOKEN": "keyring:hf/me"}, data=[{"path": "/data", "url": "s3://mine/z"}]
    )
    found = GIVEN.to(own)
    assert found.secrets == {"HF_TOKEN": "keyring:hf/me", "OTHER": "env:OTHER"}
    assert [(each.path, each.url) for each in found.data] == [
        ("/more", "s3://b/y"),
        ("/data", "s3://mine/z"),
    ]
    assert found.data[0] == DataMount(path="/more", url="s3://b/y", cache="20GB")


def test_none_is_none() -> None:
    none = request(secrets={}, data=[])
    assert GIVEN.to(none) == none
    assert GIVEN.to(request()).secrets.keys() == {"HF_TOKEN", "OTHER"}
    assert Given.of(None).to(request()) == request()


@pytest.mark.cluster
def test_every_session_has_what_the_specification_says(
    own_cluster: Callable[..., Embedded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded = own_cluster(node_idle="30s")
    folder = tmp_path / "bucket"
    folder.mkdir()
    (folder / "a.txt").write_text("there")
    mlcloud.Cluster(
        "try",
        secrets={"MINE": "env:IN_THE_NOTEBOOK"},
        data=[{"url": f"file://{folder}", "path": str(tmp_path / "data")}],
    ).up()
    embedded.processes()
    client = mlcloud.connect()
    with pytest.raises(SecretMissing, match="IN_THE_NOTEBOOK is not in this notebook's env"):
        client.session("early", namespace={})
    monkeypatch.setenv("IN_THE_NOTEBOOK", VALUE)

    s = client.session("s", namespace={})
    s.run("import os; n = len(os.environ['MINE']); token = os.environ['MINE']", durable=True)
    assert s["n"] == len(VALUE)
    s.run(f"text = open({str(tmp_path / 'data' / 'a.txt')!r}).read()")
    assert s["text"] == "there"
    files = [path for path in embedded.home.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if VALUE.encode() in path.read_bytes()] == []

    assert client.session("s", data={}, namespace={}).name == "s"  # what is given is no conflict
    with pytest.raises(Conflict, match="exists with other data"):
        client.session("s", data={"/x": "s3://b/z"}, namespace={})
    bare = client.session("bare", secrets=[], data={}, namespace={})
    bare.run(
        "n = 'MINE' in os.environ if 'os' in globals() else 'MINE' in __import__('os').environ"
    )
    assert bare["n"] is False

    path = str(tmp_path / "data" / "a.txt")

    def reads() -> tuple[int, str]:
        import os

        with open(path) as file:
            return len(os.environ.get("MINE", "")), file.read()

    def has() -> bool:
        import os

        return "MINE" in os.environ

    job = mlcloud.remote(quiet=True)(reads).submit()  # jobs have them too
    assert job.result(60) == (len(VALUE), "there")
    assert mlcloud.remote(quiet=True, secrets=[], data={})(has).submit().result(60) is False
    files = [path for path in embedded.home.rglob("*") if path.is_file()]
    assert [path for path in files if VALUE.encode() in path.read_bytes()] == []
