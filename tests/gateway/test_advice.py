"""Advice of a running cluster: what cells used is measured there. Prices are simulated."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from click.testing import CliRunner

import mlcloud
from mlcloud.cli import main
from mlcloud.errors import UsageError
from tests.cost.test_advice import check
from tests.live import Embedded, open_notebook, until

pytestmark = pytest.mark.cluster
SPIN = "import time\nend = time.time() + 6\nwhile time.time() < end: pass"


def of(found: Any, kind: str, about: str) -> Any:
    return next((each for each in found if (each.kind, each.about) == (kind, about)), None)


def test_a_session_that_is_too_large_and_one_that_is_idle(
    own_cluster: Callable[..., Embedded],
) -> None:
    embedded = own_cluster(node_idle="60s")
    client = embedded.connect()
    empty = client.advise()
    assert len(empty) == 0
    assert "no advice" in repr(empty)
    assert "no cell has been measured yet" in repr(empty)
    client.session("idle", cpus=2, idle_timeout="8h", namespace={}).run("x = 1", quiet=True)
    big = client.session("big", cpus=4, namespace={})
    big.run(SPIN, quiet=True)
    with embedded.http() as http:
        (ran,) = http.get("/v1/sessions/big/executions").json()
    assert 1 < ran["use"]["cpu_seconds"] < 8  # the machine may be busy
    assert ran["use"]["gpu_mean"] is None

    found = client.advise()
    size = of(found, "right-size", "session big")
    check(size)
    assert "local.cpu2 spot would cost 0.5× and take the same time" in size.text
    assert size.action == "%mlcloud resume big --cpus 2"
    assert size.simulated
    # It is not forgotten with the gateway, and what is advised can be done.
    embedded.kill_gateway()
    again = of(client.advise(), "right-size", "session big")
    assert (again.text, again.action) == (size.text, size.action)
    until(lambda: of(client.advise(), "park", "session idle"), "it is idle long enough", 40)
    park = of(client.advise(), "park", "session idle")
    check(park)
    assert (park.action, park.per) == ("%mlcloud park idle", "once")
    assert Decimal("0.2") < park.saves_usd < Decimal("0.2312")  # 8 h at $0.0289

    with open_notebook(embedded) as page:
        page.ok("%load_ext mlcloud")
        shown = page.ok("%mlcloud advise").shown_texts[0]
        assert "CPUs with headroom" in shown
        assert "simulated prices" in shown
        page.ok(size.action)
        page.ok(park.action)
    assert client.attach("big").state == "idle"
    assert client.attach("idle").state == "parked"
    after = client.advise()
    assert of(after, "park", "session idle") is None


def test_what_is_printed_and_refused(
    cluster: Embedded, session: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = session()
    made.run("x = 1", quiet=True)
    found = cluster.connect().advise()
    assert found.report.executions >= 1
    assert found.report.since is not None
    assert "measured since" in repr(found)
    assert "measured since" in found._repr_html_()
    answer = CliRunner().invoke(main, ["advise", "--json"])
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout)["executions"] >= 1
    own = "name=box,watts=65,kwh=0.30,purchase=40,years=4,cpus=16,memory=64GB"
    box = of(mlcloud.advise(own=own), "own-machine", "box")
    check(box)
    assert "box" in CliRunner().invoke(main, ["advise", "--own", own]).stdout
    with pytest.raises(UsageError, match="did you mean 'watts'"):
        mlcloud.advise(own="wats=65")
