"""Limits in dollars, on a running cluster. Prices are simulated: $0.0289 an hour."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

import pytest
from click.testing import CliRunner

from mlcloud import Budget
from mlcloud.cli import main
from mlcloud.errors import BudgetExceeded, NotFound, UsageError
from tests.live import Embedded, open_notebook, until

A_SECOND = Decimal("0.0289") / 3600 / 2  # of the session's half of a node


def test_a_cell_with_a_limit(cluster: Embedded, session: Callable[..., object]) -> None:
    """It is interrupted at its limit; what it had done is there, and the session goes on."""
    with open_notebook(cluster) as page:
        page.ok("%load_ext mlcloud")
        page.ok("%%remote --session capped\nimport time\ndone = 0")
        limit = f"{A_SECOND * 5:.7f}"
        cell = page.run(
            f"%%remote --session capped --max-cost {limit}\n"
            "while True:\n    time.sleep(0.05)\n    done += 1\n"
        )
        assert cell.error is not None
        assert cell.error["ename"] == "BudgetExceeded"
        assert "--max-cost" in cell.error["evalue"]
        assert cell.footer is not None
        # Within a metering interval of what the node costs.
        assert Decimal(cell.footer["usd"]) <= Decimal(limit) + 10 * A_SECOND
        after = page.ok("%%remote --session capped\nprint(done > 10)")
        assert after.stream() == "True\n"
        # What is certainly too little is refused before it runs.
        refused = page.run("%%remote --session capped --max-cost 0.0000001\ndone = -1")
        assert refused.error["ename"] == "BudgetExceeded"
        assert page.ok("%%remote --session capped\nprint(done > 10)").stream() == "True\n"
        wrong = page.run("%%remote --session capped --max-cost lots\n1")
        assert "cannot read 'lots' as a budget" in wrong.error["evalue"]
        page.ok("%mlcloud close capped")


def test_a_cell_that_does_not_yield(cluster: Embedded, session: Callable[..., object]) -> None:
    """Its kernel is ended, and the session is back with the state from before it."""
    made = session()
    made.run("kept = 1", durable=True, quiet=True)  # type: ignore[attr-defined]
    code = (
        "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nkept = 2\n"
        "end = time.time() + 60\nwhile time.time() < end: pass"
    )
    with pytest.raises(BudgetExceeded, match="--max-cost"):
        made.run(code, max_cost=f"{A_SECOND * 4:.7f}")  # type: ignore[attr-defined]
    assert made["kept"] == 1  # type: ignore[index]


def test_a_session_with_a_budget(own_cluster: Callable[..., Embedded]) -> None:
    """Told at the alerts; at the limit its cell ends, it is parked with what it has, and takes no
    more until the budget is raised; a new gateway knows of it."""
    embedded = own_cluster(node_idle="2s")
    with open_notebook(embedded) as page:
        page.ok("%load_ext mlcloud\nimport mlcloud")
        page.ok(f"s = mlcloud.session('b', cpus=2, budget='{A_SECOND * 2 * 25:.7f}')")
        page.ok("%%remote --session b\nimport time\nsteps = []")
        cell = page.run(
            "%%remote --session b\nwhile True:\n    time.sleep(0.1)\n    steps.append(1)"
        )
        assert cell.error["ename"] == "BudgetExceeded"
        assert "%mlcloud budget" in cell.error["evalue"]
        assert "80% of the budget of session 'b' is spent" in cell.lines
        client = embedded.connect()
        until(lambda: client.attach("b").state == "parked", "it is parked", 20)
        (budget,) = client.budgets()
        assert budget.spent_usd <= budget.limit_usd + 10 * 2 * A_SECOND
        assert budget.spent_usd >= budget.limit_usd * Decimal("0.7")
        refused = page.run("%%remote --session b\nprint(len(steps))")
        assert refused.error["ename"] == "BudgetExceeded"
        with pytest.raises(BudgetExceeded):
            client.attach("b").resume()
        # Without a gateway nothing is forgotten.
        embedded.kill_gateway()
        refused = page.run("%%remote --session b\nprint(len(steps))")
        assert refused.error["ename"] == "BudgetExceeded"
        until(lambda: not embedded.workers(), "its node is given back", 30)
        shown = page.ok("%mlcloud budget 1 --session b").shown_texts[0]
        assert "session b" in shown
        assert page.ok("%%remote --session b\nprint(len(steps) > 20)").stream() == "True\n"
        page.ok("%mlcloud budget --session b --remove")
        assert client.budgets() == []


def test_the_clusters_budget_parks_all_of_it(own_cluster: Callable[..., Embedded]) -> None:
    embedded = own_cluster(node_idle="60s", max_nodes="2")
    client = embedded.connect()
    one = client.session("one", cpus=2, namespace={})
    two = client.session("two", cpus=2, namespace={})
    for each in (one, two):
        each.run("kept = 1", durable=True, quiet=True)
    spent = client.cost()
    client.set_budget(Budget(f"{spent + A_SECOND * 4 * 8:.7f}"))
    handle = one.run("import time\nwhile True: time.sleep(0.1)", detach=True, quiet=True)
    assert handle is not None
    until(lambda: {one.state, two.state} == {"parked"}, "both are parked", 60)
    until(lambda: not embedded.workers(), "no node is left, idle ones included", 30)
    (budget,) = client.budgets()
    assert budget.spent_usd <= budget.limit_usd + 10 * 4 * A_SECOND
    with pytest.raises(BudgetExceeded, match="the cluster has spent"):
        two.run("kept")
    client.remove_budget()
    assert two["kept"] == 1


def test_bad_budgets(cluster: Embedded) -> None:
    client = cluster.connect()
    with pytest.raises(NotFound):
        client.set_budget(Budget("5", session="nobody"))
    with pytest.raises(UsageError, match="cannot read"):
        client.session("never-made", budget="a lot", namespace={})
    with pytest.raises(NotFound):
        client.attach("never-made")
    with cluster.http() as http:
        answer = http.put("/v1/budgets", json={"limit": "much"})
        assert (answer.status_code, answer.json()["code"]) == (422, "UsageError")


@pytest.mark.slow
def test_a_users_and_a_jobs_budget(
    own_cluster: Callable[..., Embedded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's stop parks all sessions of hers and nobody else's; a job's ends its cells, in a
    session that goes on for others."""
    embedded = own_cluster(node_idle="60s", max_nodes="2")
    client = embedded.connect()
    monkeypatch.setenv("LOGNAME", "ada")  # whom the operating system names
    hers = [client.session(name, cpus=1, namespace={}) for name in ("a", "b")]
    monkeypatch.setenv("LOGNAME", "bob")
    his = client.session("c", cpus=1, namespace={})
    for each in (*hers, his):
        each.run("kept = 1", durable=True, quiet=True)
    spent = sum(each.usd for each in client.sessions() if each.name in "ab")
    client.set_budget(Budget(f"{spent + A_SECOND * 2 * 8:.7f}", user="ada"))
    hers[0].run("import time\nwhile True: time.sleep(0.1)", detach=True, quiet=True)
    until(lambda: {each.state for each in hers} == {"parked"}, "hers are parked", 60)
    with pytest.raises(BudgetExceeded, match="user 'ada' has spent"):
        hers[1].run("kept")
    (budget,) = client.budgets()
    assert (budget.user, budget.session) == ("ada", None)
    assert budget.spent_usd <= budget.limit_usd + 10 * 2 * A_SECOND
    assert his["kept"] == 1
    client.remove_budget(user="ada")
    assert hers[1]["kept"] == 1

    with embedded.http() as http:
        client.set_budget(Budget(f"{A_SECOND * 8:.7f}", job="j-1"))
        loop = "import time\nwhile True: time.sleep(0.1)"
        where = "/v1/sessions/c/executions"
        http.post(where, json={"id": "e-job-0001", "code": loop, "job": "j-1"})
        http.post(where, json={"id": "e-job-0002", "code": "1", "job": "j-1"})
        http.post(where, json={"id": "e-other-1", "code": "other = 1"})
        until(
            lambda: http.get(f"{where}/e-job-0001").json()["state"] == "failed", "it is ended", 30
        )
        assert http.get(f"{where}/e-job-0002").json()["state"] == "failed"
        refused = http.post(where, json={"id": "e-job-0003", "code": "1", "job": "j-1"})
        assert (refused.status_code, refused.json()["code"]) == (402, "BudgetExceeded")
    assert his["other"] == 1  # the session goes on
    (budget,) = client.budgets()
    assert budget.job == "j-1"
    assert budget.limit_usd * Decimal("0.3") < budget.spent_usd
    assert budget.spent_usd <= budget.limit_usd + 10 * A_SECOND
    with pytest.raises(UsageError, match="a job's budget is for all of it"):
        Budget("5/h", job="j-1")
    with pytest.raises(UsageError, match="of one session, one user or one job"):
        Budget("5", job="j-1", user="ada")


def test_from_a_shell(cluster: Embedded) -> None:
    client = cluster.connect()
    shell = CliRunner()
    set_ = shell.invoke(main, ["budget", "5/day", "--user", "zoe", "--alerts", "0.5"])
    assert (set_.exit_code, "user zoe" in set_.output) == (0, True), set_.output
    (budget,) = [each for each in client.budgets() if each.user == "zoe"]
    assert (budget.limit, budget.alerts, budget.spent_usd) == ("5/day", [0.5], 0)
    wrong = shell.invoke(main, ["budget", "5/day", "--job", "j-9"])
    assert wrong.exit_code != 0
    assert "a job's budget is for all of it" in wrong.output
    gone = shell.invoke(main, ["budget", "--user", "zoe", "--remove"])
    assert gone.exit_code == 0
    assert "user zoe" not in gone.output
