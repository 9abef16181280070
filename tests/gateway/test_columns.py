"""What is summed up in the columns is what its rows are, to the last part."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcloud.cost.shares import Sums
from mlcloud.gateway.columns import MOST_PARTS, Columns, Row, pack

rows = st.lists(
    st.builds(
        Row,
        node_id=st.sampled_from(["i-1", "i-2"]),
        session_id=st.sampled_from(["", "s-1", "s-2", "s-3"]),
        price=st.sampled_from(["0.0289 0.085", "1.0060 1.006", "98.32 98.32", "0 0"]),
        parts=st.sampled_from([1, 2, 3, 7, 16, 1000, MOST_PARTS + 1]),
        busy=st.booleans(),
        paid=st.integers(0, 10**17),
        needed=st.integers(0, 10**17),
    ),
    max_size=12,
)


@pytest.mark.parametrize("by", [[], ["session_id"], ["day", "node_id"]])
@settings(max_examples=60, deadline=None)
@given(days=st.dictionaries(st.integers(20_000, 20_004), rows, max_size=3))
def test_totals(by: list[str], days: dict[int, list[Row]]) -> None:
    columns = Columns()
    for day, found in days.items():
        columns.add(day, pack(found))
    one_by_one: Sums[tuple[object, ...]] = Sums()
    for row in columns.groups(by, 20_001, 20_004):
        one_by_one.add(row[: len(by)], *row[len(by) :])
    whole: Sums[tuple[object, ...]] = Sums()
    dollar, hour, totals = columns.totals(by, 20_001, 20_004)
    for row in totals:
        whole.add_total(row[: len(by)], (dollar, hour), *row[len(by) :])
    for row in columns.odd(by, 20_001, 20_004):
        whole.add(row[: len(by)], *row[len(by) :])
    expected = {key: _read(each) for key, each in one_by_one.amounts().items()}
    assert {key: _read(each) for key, each in whole.amounts().items()} == expected
    for each in whole.amounts().values():
        for rounded, exact in zip(each.rounded(), _read(each), strict=True):
            assert abs(Fraction(rounded) - exact) <= Fraction(1, 2 * 10**9)


def _read(amount: object) -> tuple[Fraction, ...]:
    return tuple(getattr(amount, name) for name in ("usd", "on_demand", "idle", "hours"))
