"""Generated cells against the truth: what a cell read when it ran was found in its text."""

from __future__ import annotations

import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlcloud.client.names import analyze
from tests.client.cells import NAMES, cell, outside_reads

SEEDS = 6  # runs of one cell, each with other decisions

quick = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
long = settings(quick, max_examples=10_000, derandomize=False)
absent = st.sets(st.sampled_from(NAMES), max_size=2)


def check(source: str, absent: set[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        found = analyze(source, {})
        for seed in range(SEEDS):
            missed = outside_reads(source, seed, frozenset(absent)) - found.reads
            assert not missed, f"{missed} not found to be read (run {seed}):\n{source}"


@quick
@given(cell(), absent)
def test_every_name_that_was_read_was_found(source: str, absent: set[str]) -> None:
    check(source, absent)


@pytest.mark.slow
@long
@given(cell(), absent)
def test_every_name_that_was_read_was_found_at_length(source: str, absent: set[str]) -> None:
    check(source, absent)
