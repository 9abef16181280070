"""How commands print: tables, and warnings as lines."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import click


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Warnings are lines for the user here, without the code that gave them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            for each in caught:
                if issubclass(each.category, UserWarning):
                    click.echo(f"warning: {each.message}", err=True)


def show_table(heads: tuple[str, ...], lines: list[tuple[Any, ...]]) -> None:
    from mlcloud.widgets.tables import table

    numbers = {
        *("step", "bytes", "new", "age", "metric", "most"),
        *("spot there", "cost", "omniscient", "spot h", "on-demand h", "starts", "late"),
    }
    click.echo(table(heads, lines, numbers=numbers)["text/plain"])
