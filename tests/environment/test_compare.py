"""What is said of two versions: nothing, a warning, a refusal."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mlcloud.environment import compare
from mlcloud.environment.compare import Verdict
from mlcloud.environment.facts import Facts

HERE = Facts(
    python="3.11.7",
    implementation="cpython",
    platform="linux-x86_64",
    mlcloud="0.1.0",
    api="1",
    packages={"ipython": "9.18.1", "cloudpickle": "3.1.3", "pandas": "2.3.3"},
)


def verdict(name: str, there: Facts) -> Verdict:
    return next(row.verdict for row in compare.basics(HERE, there) if row.package == name)


@pytest.mark.parametrize(
    ("here", "there", "expected"),
    [
        ("2.3.3", "2.3.3", Verdict.SAME),
        ("2.3.3", "2.3.1", Verdict.FINE),
        ("2.3.3", "2.2.3", Verdict.MAY_MATTER),
        ("2.3.3", "3.0.0", Verdict.MATTERS),
        ("3.0.0", "2.3.3", Verdict.MATTERS),
        ("2.4.0rc1", "2.4.0", Verdict.FINE),
        ("2.13.0+cpu", "2.13.0+cu130", Verdict.SAME),
        ("2.13.0+cpu", "2.13.0", Verdict.SAME),
        ("0.4.1", "0.5.0", Verdict.MAY_MATTER),
        ("0.9", "1.0", Verdict.MATTERS),
        ("2024.6.0", "2026.1.0", Verdict.MAY_MATTER),
        ("25.4.0", "26.1.0", Verdict.MAY_MATTER),
        ("9.1", "10.0", Verdict.MATTERS),
        ("1!1.0", "1.0", Verdict.MATTERS),
        ("1.0", "", Verdict.UNKNOWN),
        ("1.0", "not-a-version", Verdict.MAY_MATTER),
    ],
)
def test_versions(here: str, there: str, expected: Verdict) -> None:
    assert compare.versions("it", here, there).verdict is expected


def test_another_python_minor_blocks_and_a_patch_does_not() -> None:
    assert verdict("Python", replace(HERE, python="3.11.2")) is Verdict.FINE
    assert verdict("Python", replace(HERE, python="3.12.7")) is Verdict.MATTERS
    assert verdict("Python", replace(HERE, implementation="pypy")) is Verdict.MATTERS


def test_another_protocol_blocks_and_another_release_does_not() -> None:
    assert verdict("mlcloud", replace(HERE, api="2")) is Verdict.MATTERS
    assert verdict("mlcloud", replace(HERE, mlcloud="1.0.0")) is Verdict.MAY_MATTER


def test_ipython_never_blocks_and_cloudpickle_may() -> None:
    there = replace(HERE, packages={"ipython": "8.18.0", "cloudpickle": "2.2.1"})
    assert verdict("ipython", there) is Verdict.MAY_MATTER
    assert verdict("cloudpickle", there) is Verdict.MATTERS


def test_a_package_that_is_missing_blocks_unless_another_brings_its_module() -> None:
    there = replace(HERE, packages={}, importable={"cv2": True, "pandas": False})
    assert compare.package("pandas", HERE, there, "pandas").verdict is Verdict.MISSING
    assert compare.package("opencv-python", HERE, there, "cv2").verdict is Verdict.FINE
    assert compare.package("sounds", HERE, there, "sounds").verdict is Verdict.UNKNOWN


def test_a_table_has_what_matters_most_first() -> None:
    here = replace(HERE, packages={**HERE.packages, "a": "1", "b": "1", "c": "1.1", "d": "1"})
    there = replace(HERE, packages={**HERE.packages, "a": "1", "b": "2", "c": "1.2"})
    rows = compare.table(here, there, ["a", "b", "c", "d", "ipython"])
    assert [row.package for row in rows] == [
        *("Python", "mlcloud", "cloudpickle", "ipython"),
        *("d", "b", "c", "a"),
    ]
