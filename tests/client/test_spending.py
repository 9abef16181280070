"""`mlcloud.cost()` on a running cluster: the report, the frame, the file, the shell."""

from __future__ import annotations

import csv
import getpass
import json
from decimal import Decimal
from pathlib import Path

import pytest

import mlcloud
from mlcloud.errors import UsageError
from mlcloud.magics.commands import run_command
from tests.live import Embedded


def test_what_was_spent_by_whom(
    cluster: Embedded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = cluster.connect()
    made = client.session("costly", tags={"team": "nlp"})
    try:
        made.run("a = 1", quiet=True)
        cost = mlcloud.cost()
        # It reads as its total in dollars.
        assert cost > 0
        assert cost == cost.usd
        assert float(cost) > 0
        assert f"{cost:.4f}" == f"{cost.usd:.4f}"
        assert Decimal(0) < client.cost() - cost < Decimal("0.01")
        assert "simulated prices" in repr(cost)
        assert "costly" in set(cost.to_frame("session")["session"])
        assert "<table" in cost._repr_html_()

        frame = cost.to_frame("tag:team")
        assert set(frame["tag:team"]) >= {"nlp", "(unknown)"}
        assert abs(frame["usd"].sum() - float(cost)) < 1e-6
        users = client.costs("user").to_frame()
        assert getpass.getuser() in set(users["user"])
        cells = client.costs("execution").to_frame()
        assert "costly" in set(cells["session"])
        assert client.costs("session", since="1h").usd <= client.costs().usd

        path = tmp_path / "costs.csv"
        run_command(f"cost --focus {path}")
        charges = list(csv.DictReader(path.open(newline="")))
        billed = sum(Decimal(row["BilledCost"]) for row in charges)
        assert abs(billed - client.cost()) < Decimal("0.01")
        assert any(json.loads(row["Tags"]).get("team") == "nlp" for row in charges)
        days = run_command(f"cost --reconcile {path}")
        assert abs(days.unexplained_usd) < Decimal("0.01")
        capsys.readouterr()
        run_command("cost --by day --since 7d --json")
        answer = json.loads(capsys.readouterr().out)
        assert answer["by"] == ["day"]
        assert answer["rows"]
        assert all(each["simulated"] for each in answer["estimates"])
        with pytest.raises(UsageError, match="did you mean 'session'"):
            mlcloud.cost("sesion")
        with pytest.raises(UsageError, match="cannot read 'lately' as a time"):
            mlcloud.cost(since="lately")
    finally:
        made.close()
