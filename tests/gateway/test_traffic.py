"""What sessions move is counted, and told as an estimate beside the dollars of the meter."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any
from unittest import mock

import pytest

from mlcloud.cost.estimates import MONTH, DataSeen, egress_usd, estimates, prices_of, requests_usd
from mlcloud.gateway import db, traffic
from mlcloud.gateway.traffic import Moved, Traffic, data_usd
from tests.cost.test_meter import at
from tests.live import Embedded

GB = 10**9
A, B = "blake3:" + "a" * 64, "blake3:" + "b" * 64


def test_a_snapshot_is_its_new_chunks_and_its_manifest() -> None:
    """In another region its bytes cross over; a restore reads all of them."""
    counted = Traffic(db.open_database("sqlite://"))
    with mock.patch.object(traffic, "now", return_value=at(0)):
        counted.committed("s-1", {"chunks": [f"{A}:100"]}, elsewhere=True)
        counted.committed("s-1", {"chunks": [f"{A}:100", f"{B}:50"]}, elsewhere=True)
        counted.restored("s-1", {"chunks": [f"{A}:100", f"{B}:50"]}, elsewhere=False)
        counted.add("s-1", Moved(out=7))
    assert counted.of("s-1") == Moved(out=7, across=150, puts=4, gets=3)
    with mock.patch.object(traffic, "now", return_value=at(86400)):
        counted.add("s-1", Moved(out=1))
        counted.add("s-2", Moved(out=5))
    # By day, also for a gateway that comes after this one.
    assert counted.between(at(0), at(10)) == {"s-1": Moved(7, 150, 4, 3)}
    after = Traffic(counted._engine)
    assert after.between(at(86400), at(86401)) == {"s-1": Moved(out=1), "s-2": Moved(out=5)}
    assert after.of("s-1") == Moved(8, 150, 4, 3)
    with mock.patch.object(traffic, "now", return_value=at(86400)):
        after.add("s-2", Moved(out=5))  # into a row that is there
    assert after.between(None, at(86401))["s-2"] == Moved(out=10)


def test_what_it_may_cost() -> None:
    seen = DataSeen(out=1024**3, across=2 * 1024**3, puts=2000, gets=10_000)
    s3 = prices_of("s3://bucket/x")
    assert egress_usd(s3, seen) == Decimal("0.13")  # 0.09 + 2 × 0.02
    assert requests_usd(s3, seen) == Decimal("0.014")  # 2 × 0.005 + 10 × 0.0004
    assert data_usd("s3://bucket/x", Moved(*seen)) == Decimal("0.144")
    assert data_usd("file:///tmp/x", Moved(*seen)) == 0
    _, requests, egress = estimates("s3://b", GB, 10, MONTH, seen)
    assert (requests.usd, egress.usd) == (Decimal("0.014"), Decimal("0.13"))
    assert "2,000 writes and 10,000 reads that were seen" in requests.basis
    assert "to notebooks" in egress.basis


def test_a_sessions_output_and_state_are_seen(
    cluster: Embedded, session: Callable[..., Any]
) -> None:
    made = session()
    made.run("kept = 1\nprint('x' * 200_000)", durable=True, quiet=True)
    client = cluster.connect()
    costs = client.costs("session")
    (moved,) = [each for each in costs.data if each.session == made.name]
    assert moved.to_notebook_bytes > 200_000
    assert moved.store_writes >= 2  # a chunk and a manifest
    assert moved.usd_estimate == 0  # the store is on this computer
    egress = next(each for each in costs.costs.estimates if each.what == "egress")
    assert egress.simulated
    assert "to notebooks" in egress.basis
    before = moved.store_reads
    made.park()
    made.resume()
    (moved,) = [each for each in client.costs("session").data if each.session == made.name]
    assert moved.store_reads > before


@pytest.mark.parametrize("usd", ["0.00001", "0.02"])
def test_the_dashboards_text_names_it_where_it_is_worth_a_word(usd: str) -> None:
    from mlcloud.models import SessionInfo
    from mlcloud.widgets.dashboard import _spent

    info = SessionInfo.model_construct(usd=Decimal(1), data_usd_estimate=Decimal(usd))
    shown = "$1.00" if usd == "0.00001" else "$1.00 + about $0.020 for data"
    assert _spent(info) == shown
