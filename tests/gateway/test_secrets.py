"""Secrets are in the session's environment, wherever it lives, and in no file and no output."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlcloud.client.session import Session
from mlcloud.errors import NotPicklable, SecretMissing, UsageError
from tests.live import Embedded, open_notebook, until

pytestmark = pytest.mark.cluster

VALUE = "hf_Yq8ZtWc2VbN5mKx7LpR3"
CONTROL = "control-7f3a9b1c5d"  # what is no secret is found by the same search
DIGEST = hashlib.sha256(VALUE.encode()).hexdigest()
LOOK = "import hashlib, os; print(hashlib.sha256(os.environ['HF_TOKEN'].encode()).hexdigest())"
SOURCES = {"HF_TOKEN": "env:IN_THE_NOTEBOOK"}


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    home = tmp_path_factory.mktemp("secrets")
    with Embedded(home, max_nodes="4", offer_cooldown="5s", node_idle="30s") as embedded:
        embedded.connect()  # before the value is in the environment that its processes inherit
        yield embedded


@pytest.fixture
def notebook_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IN_THE_NOTEBOOK", VALUE)


@pytest.fixture
def make(embedded: Embedded, notebook_has_it: None) -> Iterator[Callable[..., Session]]:
    made: list[Session] = []

    def one(name: str, **options: Any) -> Session:
        options = {"namespace": {}, "secrets": SOURCES, **options}
        made.append(embedded.connect().session(name, **options))
        return made[-1]

    yield one
    for each in {each.name: each for each in made}.values():
        embedded.connect().attach(each.name).close()


def files_with(text: str, *folders: Path) -> list[Path]:
    found = []
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink() and text.encode() in path.read_bytes():
                found.append(path)
    return found


def test_seen_by_cells_and_by_nobody_else(
    make: Callable[..., Session], embedded: Embedded, capsys: pytest.CaptureFixture[str]
) -> None:
    s = make("seen")
    s.run(LOOK, quiet=True)
    s.run("!printf %s $HF_TOKEN | sha256sum", quiet=True)
    assert capsys.readouterr().out.count(DIGEST) == 2

    s.run(f"import sys; kept = {CONTROL!r}\ntok = os.environ['HF_TOKEN']", quiet=True, durable=True)
    s.run("!echo [$HF_TOKEN]", quiet=True)
    s.run("print('a', tok, {'t': tok}); print(tok, file=sys.stderr)", quiet=True)
    s.run("for c in tok: print(c, end='', flush=True)", quiet=True)
    s.run("os.write(1, tok[:9].encode()); os.write(1, tok[9:].encode()); None", quiet=True)
    s.run("from IPython.display import HTML; display(HTML('<b>' + tok)); tok", quiet=True)
    s.run("def f(x: str = tok): 'with it in its default'", quiet=True, durable=True)
    with pytest.raises(ValueError, match=r"refused \*\*\*"):
        s.run("raise ValueError('refused ' + tok, {tok})", quiet=True)
    with pytest.raises(KeyError) as raised:
        s.run("os.environ[tok]", quiet=True)
    shown = capsys.readouterr()
    assert shown.out.count("***") >= 6
    assert "***" in shown.err
    assert VALUE not in shown.out + shown.err + str(raised.value) + repr(raised.value.args)

    variables = {each.name: each for each in s.saved().state.variables}
    assert variables["kept"].how == "saved"
    assert variables["tok"].how != "saved"
    assert variables["tok"].why == "it holds the secret HF_TOKEN"
    assert variables["f"].why == "it holds the secret HF_TOKEN"
    with pytest.raises(NotPicklable, match="holds the secret HF_TOKEN"):
        s["tok"]
    assert s["kept"] == CONTROL
    with pytest.raises(NotPicklable, match="holds the secret HF_TOKEN"):
        s["mine"] = {"auth": VALUE}
    with pytest.raises(UsageError, match="the cell's text has the value of the secret HF_TOKEN"):
        s.run(f"mine = {VALUE!r}", quiet=True)

    s.park()
    folders = (embedded.home, embedded.settings.ray_dir)
    assert files_with(CONTROL, *folders)
    assert files_with(VALUE, *folders) == []


def kept_in(s: Session, capsys: pytest.CaptureFixture[str]) -> Callable[[], None]:
    """What asserts that the session has the secret, and a name that a cell made of it."""
    s.run("import os\ntok = os.environ['HF_TOKEN']", quiet=True, durable=True)

    def still_there() -> None:
        capsys.readouterr()
        s.run(f"{LOOK}\nprint(tok == os.environ['HF_TOKEN'])", quiet=True)
        assert f"{DIGEST}\nTrue\n" in capsys.readouterr().out

    return still_there


def test_it_comes_along_to_the_next_node_and_the_next_kernel(
    make: Callable[..., Session], embedded: Embedded, capsys: pytest.CaptureFixture[str]
) -> None:
    s = make("along")
    still_there = kept_in(s, capsys)
    first = s.info.node
    embedded.connect().cluster.preempt(s.name, "0s")
    until(lambda: s.info.node != first, "the node is gone")
    still_there()

    with pytest.raises(Exception, match="SIGKILL"):
        s.run("os.kill(os.getpid(), 9)", quiet=True)
    still_there()
    assert files_with(VALUE, embedded.home, embedded.settings.ray_dir) == []


def test_a_killed_gateway_has_it_again(
    make: Callable[..., Session], embedded: Embedded, capsys: pytest.CaptureFixture[str]
) -> None:
    s = make("gateway")
    still_there = kept_in(s, capsys)
    embedded.kill_gateway()  # the next one asks the host
    still_there()
    second = s.info.node
    embedded.connect().cluster.preempt(s.name, "0s")
    until(lambda: s.info.node != second, "the node is gone")
    still_there()

    s.park()
    embedded.kill_gateway()  # there is no host: the next one asks the notebook
    still_there()
    fork = s.fork("forked")
    fork.run(LOOK, quiet=True)
    assert DIGEST in capsys.readouterr().out
    fork.close()
    assert files_with(VALUE, embedded.home, embedded.settings.ray_dir) == []


def test_nothing_runs_without_it(
    make: Callable[..., Session],
    embedded: Embedded,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    s = make("without")
    s.run("1", quiet=True)
    s.park()
    embedded.kill_gateway()
    monkeypatch.delenv("IN_THE_NOTEBOOK")
    touch = f"open({str(tmp_path / 'ran')!r}, 'w')"
    with pytest.raises(SecretMissing, match=r"HF_TOKEN \(from env:IN_THE_NOTEBOOK\)") as raised:
        s.run(touch, quiet=True)
    assert "secrets=['HF_TOKEN']" in str(raised.value)
    assert not (tmp_path / "ran").exists()
    monkeypatch.setenv("IN_THE_NOTEBOOK", VALUE)
    make("without")
    capsys.readouterr()
    s.run(LOOK, quiet=True)
    assert DIGEST in capsys.readouterr().out


def test_one_that_is_nowhere_is_said_before_anything_starts(embedded: Embedded) -> None:
    client = embedded.connect()
    with pytest.raises(SecretMissing, match="NOWHERE_TO_BE_FOUND is not in this notebook's env"):
        client.session("nowhere", secrets=["NOWHERE_TO_BE_FOUND"], namespace={})
    with pytest.raises(UsageError, match="this says not where the value is kept") as raised:
        client.session("nowhere", secrets={"HF_TOKEN": VALUE}, namespace={})
    assert VALUE not in str(raised.value)
    assert "nowhere" not in [each.name for each in client.sessions()]


def test_given_to_a_kernel_that_runs(
    make: Callable[..., Session], embedded: Embedded, capsys: pytest.CaptureFixture[str]
) -> None:
    s = make("later", secrets=None)
    s.run("import os; print(os.environ.get('HF_TOKEN'))", quiet=True)
    assert "None" in capsys.readouterr().out
    make("later")
    s.run(f"{LOOK}\nprint(os.environ['HF_TOKEN'])", quiet=True)
    assert f"{DIGEST}\n***\n" in capsys.readouterr().out


def test_the_gateway_tells_names_only(make: Callable[..., Session], embedded: Embedded) -> None:
    s = make("told")
    with embedded.http() as http:
        path = f"/v1/sessions/{s.name}/secrets"
        told = http.get(path)
        assert told.json() == [{"name": "HF_TOKEN", "source": "env:IN_THE_NOTEBOOK", "held": True}]
        for body in (
            {"values": {"HF_TOKEN": VALUE + "\0"}},
            {"values": {"OTHER": VALUE}},
            {"values": {"not a name": VALUE}},
            {"values": {"HF_TOKEN": [VALUE]}},
            {"sources": {"OTHER": VALUE}},
            {"sources": {"RAY_ADDRESS": "env:X"}},
        ):
            refused = http.put(path, json=body)
            assert refused.status_code in (404, 422), body
            assert VALUE not in refused.text
    assert files_with(VALUE, embedded.home) == []


def test_in_a_notebook(embedded: Embedded, notebook_has_it: None) -> None:
    with open_notebook(embedded) as notebook:
        cell = notebook.ok(f"%%remote --secret HF_TOKEN=env:IN_THE_NOTEBOOK\n{LOOK}")
        assert DIGEST in cell.stream()
        cell = notebook.ok(
            "%%remote\nprint(os.environ['HF_TOKEN']); leaked = os.environ['HF_TOKEN']"
        )
        assert cell.stream() == "***\n"
        cell = notebook.ok("leaked")
        assert "holds the secret HF_TOKEN" in str(cell.result)
        assert VALUE not in str(cell.outputs)
        cell = notebook.run("%%remote --secret NOWHERE_TO_BE_FOUND\n1")
        assert "NOWHERE_TO_BE_FOUND is not in this notebook" in str(cell.outputs)
        notebook.ok("import mlcloud\nfor s in mlcloud.sessions(): mlcloud.attach(s.name).close()")


def test_of_a_cloud_is_read_by_the_gateway(
    own_cluster: Callable[..., Embedded],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """The notebook has no credentials of the cloud; files that hold the value are not kept."""
    boto3 = pytest.importorskip("boto3")
    server_of = pytest.importorskip("moto.server")
    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        cloud = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "eu-central-1",
        }
        for name, value in cloud.items():
            monkeypatch.setenv(name, value)
        boto3.client("secretsmanager").create_secret(Name="gateway/hf", SecretString=VALUE)
        embedded = own_cluster()
        client = embedded.connect()
        for name in cloud:
            monkeypatch.delenv(name)
        sources = {"HF_TOKEN": "aws:gateway/hf"}
        s = client.session("cloud", secrets=sources, keep_files="1MB", namespace={})
        s.run(LOOK, quiet=True)
        s.run(
            "open('.env', 'w').write(os.environ['HF_TOKEN'])\n"
            f"open('a.txt', 'w').write({CONTROL!r})",
            quiet=True,
            durable=True,
        )
        assert DIGEST in capsys.readouterr().out
        s.park()
        assert files_with(CONTROL, embedded.home / "store")
        assert files_with(VALUE, embedded.home / "store", embedded.home / "cloud") == []
        s.run("print(open('a.txt').read(), len(os.environ['HF_TOKEN']))", quiet=True)
        shown = capsys.readouterr()
        assert f"{CONTROL} {len(VALUE)}" in shown.out
        assert "file .env: it holds the secret HF_TOKEN, and was not saved" in shown.err
        nowhere = client.session("gone", secrets={"X": "aws:not/there"}, namespace={})
        with pytest.raises(SecretMissing, match="secret X of session 'gone' could not be read"):
            nowhere.run("1", quiet=True)
    finally:
        server.stop()
