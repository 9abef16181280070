"""`@mlcloud.remote`: calls that run in a session and otherwise are calls."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from mlcloud.client import functions
from mlcloud.client.functions import RemoteFunction, call_text, remote
from mlcloud.client.remote_value import RemoteValue
from mlcloud.errors import UsageError
from tests.live import Embedded, Notebook, open_notebook
from tests.values.pair import Pair, execute, shipped

# --- without a session ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"workers": 3}, "workers.*not in this version"),
        ({"gpus": "A10G:1"}, "unknown option gpus.*gpu"),
    ],
)
def test_an_option_it_does_not_have_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        remote(**options)


def test_it_is_for_functions() -> None:
    with pytest.raises(UsageError, match="for functions"):
        remote(dict)
    with pytest.raises(UsageError, match="for functions"):
        remote(5)  # type: ignore[arg-type]


def test_the_function_itself_and_what_it_says_of_itself() -> None:
    @remote(gpu="A10G:1")
    def train(rate: float) -> float:
        "Trains."
        return rate * 2

    assert isinstance(train, RemoteFunction)
    assert train.local(2.0) == 4.0
    assert train.__name__ == "train"
    assert train.__doc__ == "Trains."
    assert "gpu='A10G:1'" in repr(train)
    with pytest.raises(UsageError, match="map needs something"):
        train.map()


def test_a_call_is_written_as_the_user_would() -> None:
    train, df, big = object(), [1], "x" * 100
    namespace = {"train": train, "df": df, "_": df, "alias": df}
    code, temporary, result = call_text(
        train,
        (0.1, df, "text"),
        {"data": df, "other": [2], "note": big, "odd-name": None},
        namespace,
    )
    names = list(temporary)
    assert (
        code
        == (
            f"{result} = train(0.1, alias, 'text', data=alias, other={names[0]}, note={names[1]}, "
            "**{'odd-name': None})"
        )
        or code.replace("alias", "df") == code
    )
    assert list(temporary.values()) == [[2], big]
    assert call_text(train, (float("nan"),), {}, namespace)[1]


# --- both sides in one process --------------------------------------------------------------------


class Calls(Pair):
    """A notebook whose remote functions run in the pair's session."""

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        code, temporary, result = call_text(self.here[name], args, kwargs, self.here)
        shipment = self.side.prepare(code, temporary=temporary, result=result)
        self.sent = sorted(name for group in shipment.groups for name in group.names)
        self.session.load(shipped(shipment))
        try:
            execute(code, self.there)
        finally:
            self.finish(shipment)
        return self.side.take_result(shipment.id)

    def left(self) -> list[str]:
        """Names of ours in either namespace."""
        return [name for name in (*self.here, *self.there) if name.startswith("_mlcloud")]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    monkeypatch.setattr(functions, "in_session", lambda: True)
    calls = Calls()
    calls.local("import mlcloud, numpy as np")
    return calls


def test_a_call_brings_its_function_and_takes_its_result(calls: Calls) -> None:
    calls.local(
        "scale = 3\ndef helper(x): return scale * x\n"
        "@mlcloud.remote\ndef train(x, *, more=0): return [helper(x) + more]"
    )
    assert calls.call("train", 2, more=1) == [7]
    assert calls.sent == ["helper", "scale", "train"]
    calls.local("scale = 10")
    assert calls.call("train", 2) == [20]
    assert calls.sent == ["scale"]
    calls.local("@mlcloud.remote\ndef train(x): return 'edited'")
    assert calls.call("train", 2) == "edited"
    assert calls.left() == []
    assert type(calls.here["train"]) is RemoteFunction


def test_arguments_are_the_names_objects_and_are_sent_once(calls: Calls) -> None:
    calls.local(
        "data = np.arange(1000.0); rows = [1]; table = {'rows': rows}\n"
        "@mlcloud.remote\ndef add(data, rows, table, extra):\n"
        "    rows.append(len(data))\n    return table['rows'] is rows is extra[0]"
    )
    here = calls.here
    extra = [here["rows"]]
    assert calls.call("add", here["data"], here["rows"], here["table"], extra) is True
    assert here["rows"] == [1, 1000]
    assert here["table"]["rows"] is here["rows"]
    calls.call("add", here["data"], here["rows"], here["table"], [here["rows"]])
    assert "data" not in calls.sent
    assert calls.left() == []


def test_a_large_result_stays_until_nobody_holds_it(calls: Calls) -> None:
    calls.local(
        "@mlcloud.remote\ndef make(n): return np.arange(n)\n"
        "@mlcloud.remote\ndef item(box, i): return int(box['array'][i])\n"
        "@mlcloud.remote\ndef same(x): return x"
    )
    big = calls.here["big"] = calls.call("make", 1_000_000)
    assert isinstance(big, RemoteValue)
    assert "_mlcloud" not in repr(big) + big._repr_html_()
    assert calls.call("item", {"array": big}, -1) == 999_999
    assert calls.sent == ["_mlcloud" + calls.sent[0][8:], "item"]
    assert big.get()[5] == 5
    calls.remote("total = int(big.sum()); kept = big")
    assert calls.here["total"] == 499_999_500_000
    assert len(calls.left()) == 1
    again = calls.call("same", big)
    assert isinstance(again, RemoteValue)
    del big, again, calls.here["big"]
    calls.remote("n = len(kept)")
    calls.remote("n = len(kept)")
    assert calls.here["n"] == 1_000_000
    assert calls.left() == []


def test_a_result_that_is_an_argument_is_the_names_object(calls: Calls) -> None:
    calls.local("rows = [1]\n@mlcloud.remote\ndef same(x): return x")
    assert calls.call("same", calls.here["rows"]) is calls.here["rows"]


def test_a_large_argument_that_comes_back_stays_a_value_here(calls: Calls) -> None:
    calls.local("data = np.arange(1_000_000)\n@mlcloud.remote\ndef part(x): return x[:500_000]")
    part = calls.call("part", calls.here["data"])
    assert isinstance(part, RemoteValue)
    assert calls.here["data"][-1] == 999_999


def test_a_call_that_fails_leaves_nothing(calls: Calls) -> None:
    calls.local("@mlcloud.remote\ndef fails(x):\n    x.append(1)\n    raise KeyError('inside')")
    calls.local("seen = []")
    with pytest.raises(KeyError, match="inside"):
        calls.call("fails", calls.here["seen"])
    assert calls.here["seen"] == [1]
    assert calls.left() == []


def test_snapshots_keep_results_and_no_arguments(calls: Calls) -> None:
    calls.local("@mlcloud.remote\ndef make(x): return np.arange(1_000_000) + x[0]")
    calls.here["big"] = calls.call("make", [2])
    dumped = calls.session.dump_groups()
    names = {name for group in dumped.groups for name in group.names}
    assert {name for name in names if "mlcloud" in name} == {calls.here["big"].name}


# --- in a session ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def notebook(cluster: Embedded) -> Iterator[Notebook]:
    with open_notebook(cluster) as notebook:
        notebook.ok("import mlcloud, os\nimport numpy as np")
        yield notebook
        notebook.ok("for s in mlcloud.sessions(): mlcloud.attach(s.name).close()")


@pytest.mark.cluster
def test_a_call_runs_there_with_output_and_result(notebook: Notebook) -> None:
    notebook.ok(
        "scale = 3\ndef helper(x): return scale * x\n"
        "@mlcloud.remote\ndef train(x, *, more=0):\n"
        "    print('training', x)\n    return helper(x) + more, os.getpid()"
    )
    cell = notebook.ok("answer, pid = train(2, more=1)\n(answer, pid != os.getpid())")
    assert cell.result == "(7, True)"
    assert "training 2" in cell.stream()
    assert cell.footer is not None
    notebook.ok("scale = 10")
    assert notebook.ok("train(2)[0]").result == "20"
    assert notebook.ok("train.local(2)[1] == os.getpid()").result == "True"


@pytest.mark.cluster
def test_a_large_result_stays_and_is_an_argument_there(notebook: Notebook) -> None:
    notebook.ok(
        "@mlcloud.remote\ndef make(n): return np.arange(n)\n"
        "@mlcloud.remote\ndef first(array, i): return int(array[i])\nbig = make(1_000_000)"
    )
    shown = notebook.ok("big").result
    assert shown is not None
    assert "1000000" in shown
    assert "_mlcloud" not in shown
    assert notebook.ok("first(big, 5), first(big, -1)").result == "(5, 999999)"
    assert notebook.ok("%%remote\nint(big.sum())").result == "499999500000"
    assert notebook.ok("int(big.get()[7])").result == "7"
    assert notebook.ok("[n for n in globals() if 'mlcloud_' in n]").result == "[]"


@pytest.mark.cluster
def test_an_error_is_the_functions(notebook: Notebook) -> None:
    notebook.ok("@mlcloud.remote\ndef fails(): raise KeyError('inside')")
    cell = notebook.run("fails()")
    assert cell.error["ename"] == "KeyError"
    assert "inside" in cell.error["evalue"]
    shown = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(cell.error["traceback"]))
    assert "def fails(): raise KeyError('inside')" in shown
    assert "ray" not in shown


@pytest.mark.cluster
def test_in_a_session_it_is_a_plain_call(notebook: Notebook) -> None:
    notebook.ok("@mlcloud.remote\ndef inner(x): return x + 1")
    notebook.ok("@mlcloud.remote\ndef outer(x): return inner(inner(x))")
    assert notebook.ok("outer(1)").result == "3"
    assert notebook.ok("%%remote\ninner(5), type(inner).__name__").result == "(6, 'RemoteFunction')"


@pytest.mark.cluster
def test_a_session_by_name_and_by_resources(notebook: Notebook) -> None:
    notebook.ok("@mlcloud.remote(session='own')\ndef where(): return os.getpid()")
    notebook.ok("%%remote --session own\npid = os.getpid()")
    assert notebook.ok("where() == pid").result == "True"
    notebook.ok("@mlcloud.remote(market='on-demand')\ndef there(): return os.getpid()")
    assert notebook.ok("there() == there(), there() == pid").result == "(True, False)"
