"""The public names, as somebody meets them who asks a notebook what they are."""

from __future__ import annotations

import inspect

import pytest

import mlcloud
from mlcloud.client.api import Client


@pytest.mark.parametrize("name", mlcloud.__all__)
def test_each_says_what_it_is(name: str) -> None:
    found = getattr(mlcloud, name)
    assert name in dir(mlcloud)
    assert len(inspect.getdoc(found) or "") > 40


@pytest.mark.parametrize("name", ["session", "attach", "advise"])
def test_those_of_the_default_connection_take_what_its_client_does(name: str) -> None:
    here, there = getattr(mlcloud, name), getattr(Client, name)
    _, *parameters = inspect.signature(there).parameters.values()
    assert [*inspect.signature(here).parameters.values()] == parameters
    first = inspect.getdoc(there).splitlines()[0]
    assert inspect.getdoc(here).splitlines()[0] == first
    assert "default connection" in inspect.getdoc(here)
