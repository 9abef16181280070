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


@pytest.mark.slow
def test_a_session_that_is_too_large(cluster: Embedded, session: Callable[..., Any]) -> None:
    """On 4 CPUs it keeps one busy; what is advised can be done, and is not advised again."""
    big = session("big", cpus=4)
    about = f"session {big.name}"
    big.run(SPIN, quiet=True, durable=True)
    with cluster.http() as http:
        (ran,) = http.get(f"/v1/sessions/{big.name}/executions").json()
    assert 1 < ran["use"]["cpu_seconds"] < 8  # the machine may be busy
    assert ran["use"]["memory_peak"] > 10**7
    assert ran["use"]["gpu_mean"] is None
    size = of(cluster.connect().advise(), "right-size", about)
    check(size)
    assert "local.cpu2 spot would cost 0.5× and take the same time" in size.text
    assert size.action == f"%mlcloud resume {big.name} --cpus 2"
    assert size.simulated
    cluster.kill_gateway()  # it is not forgotten with it
    again = of(cluster.connect().advise(), "right-size", about)
    assert (again.text, again.action) == (size.text, size.action)
    with open_notebook(cluster) as page:
        page.ok("%load_ext mlcloud")
        shown = page.ok("%mlcloud advise").shown_texts[0]
        assert "CPUs with headroom" in shown
        assert "simulated prices" in shown
        page.ok(size.action)
    assert of(cluster.connect().advise(), "right-size", about) is None


@pytest.mark.slow  # it must be idle for half a minute
def test_a_session_that_is_idle(cluster: Embedded, session: Callable[..., Any]) -> None:
    made = session(cpus=2, idle_timeout="8h")
    made.run("x = 1", quiet=True, durable=True)
    client, about = cluster.connect(), f"session {made.name}"
    assert of(client.advise(), "park", about) is None
    park = until(lambda: of(client.advise(), "park", about), "it is idle long enough", 40)
    check(park)
    assert (park.action, park.per) == (f"%mlcloud park {made.name}", "once")
    whole = 8 * made.info.usd_per_hour  # of whichever node was there
    assert whole * Decimal("0.9") < park.saves_usd < whole
    made.park()
    assert of(client.advise(), "park", about) is None


def test_what_is_printed_and_refused(
    cluster: Embedded, session: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = session(cpus=4)
    made.run(SPIN, quiet=True)
    found = cluster.connect().advise()
    size = of(found, "right-size", f"session {made.name}")
    check(size)
    assert size.action == f"%mlcloud resume {made.name} --cpus 2"
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
