"""What stands under a cell, and what tools read from its metadata."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date, datetime, timezone
from decimal import Decimal
from fractions import Fraction
from html.parser import HTMLParser

import pytest

from mlcloud.cluster.offers import Offer
from mlcloud.cost.footer import footer
from mlcloud.cost.ledger import NodeSpan
from mlcloud.cost.meter import Bill

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
OFFER = Offer(
    cloud="local",
    region="local",
    zone="local-a",
    instance_type="local.cpu2",
    cpus=2,
    memory_bytes=2**32,
    accelerator=None,
    accelerator_count=0,
    market="spot",
    usd_per_hour=Decimal("0.0289"),
    simulated=True,
    source='simulated, modelled on "a list"',
    as_of=date(2026, 1, 1),
)
BILL = Bill(
    exact=Fraction("0.0011"),
    exact_on_demand=Fraction("0.0035"),
    seconds=12.4321,
    nodes=(
        NodeSpan("n1", replace(OFFER, zone="local-b"), START),
        NodeSpan("n2", OFFER, START),
    ),
    moves=1,
    execution_id="e-1",
    session_id="exp",
)


class _Text(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.text = ""
        self.attributes: dict[str, str | None] = {}
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.update(attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_line() -> None:
    text, _, _ = footer(BILL)
    assert text == (
        "12.4 s on local.cpu2 spot local-a · $0.0011 · saved $0.0024 vs on-demand · moved once"
        " · simulated prices"
    )


def test_the_html_says_the_same_and_where_the_prices_are_from() -> None:
    text, html, _ = footer(BILL)
    shown = _Text(html)
    assert shown.text == text
    title = shown.attributes["title"]
    assert title is not None
    assert 'modelled on "a list", 2026-01-01' in title
    style = shown.attributes["style"]
    assert style is not None
    assert "var(--jp-ui-font-color2,#757575)" in style


def test_names_from_a_cloud_cannot_break_the_html() -> None:
    odd = replace(OFFER, zone="<img src=x onerror=alert(1)>")
    _, html, _ = footer(replace(BILL, nodes=(NodeSpan("n", odd, START),)))
    assert "<img" not in html


def test_the_metadata_survive_json_with_their_dollars_unrounded() -> None:
    _, _, metadata = footer(replace(BILL, exact=Fraction("0.0011034")))
    assert json.loads(json.dumps(metadata)) == {
        "mlcloud": {
            "seconds": 12.4321,
            "usd": "0.001103400",
            "saved_usd": "0.002396600",
            "instance_type": "local.cpu2",
            "market": "spot",
            "zone": "local-a",
            "moves": 1,
            "simulated": True,
            "execution_id": "e-1",
            "session": "exp",
            "lag": "",
        }
    }


def test_it_says_how_far_the_store_is_behind() -> None:
    text, html, metadata = footer(BILL, "safe to cell 12; 3.1 GB pending")
    assert text.endswith("safe to cell 12; 3.1 GB pending")
    assert "3.1 GB pending" in html
    assert metadata["mlcloud"]["lag"] == "safe to cell 12; 3.1 GB pending"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"moves": 0}, "12.4 s on local.cpu2 spot local-a · $0.0011 · saved $0.0024 vs on-demand"),
        ({"moves": 2}, "moved twice"),
        ({"moves": 5}, "moved 5 times"),
        ({"exact_on_demand": Fraction("0.0001")}, "· $0.0010 more than on-demand ·"),
    ],
)
def test_variants(change: dict[str, object], expected: str) -> None:
    assert expected in footer(replace(BILL, **change))[0]  # type: ignore[arg-type]


def test_no_saving_worth_a_word_is_not_mentioned() -> None:
    bill = replace(BILL, exact_on_demand=BILL.exact + Fraction(1, 10**6), moves=0)
    assert footer(bill)[0] == "12.4 s on local.cpu2 spot local-a · $0.0011 · simulated prices"


def test_real_prices_are_not_called_simulated() -> None:
    real = NodeSpan("n", replace(OFFER, simulated=False), START)
    text, _, metadata = footer(replace(BILL, nodes=(real,)))
    assert "simulated" not in text
    assert metadata["mlcloud"]["simulated"] is False


def test_a_cell_that_never_ran() -> None:
    text, _, metadata = footer(Bill(execution_id="e", session_id="s"))
    assert text == "0 s · nothing billed"
    assert metadata["mlcloud"]["usd"] == "0.000000000"
    assert metadata["mlcloud"]["zone"] is None
