"""Whose names are whose, and what looks like a secret."""

from __future__ import annotations

import io
import os
import sys
import types
import xml.dom
from typing import Any

import pytest

from mlcloud.values.modules import find
from mlcloud.values.userdata import import_path, is_hidden, is_internal, looks_secret


@pytest.mark.parametrize(
    "name", ["In", "Out", "_", "__", "___", "_i", "_ii", "_i12", "_12", "_oh", "exit", "__name__"]
)
def test_ipythons_names(name: str) -> None:
    assert is_internal(name)


@pytest.mark.parametrize("name", ["x", "_helper", "_index", "input_", "Inner", "_1x"])
def test_the_users_names(name: str) -> None:
    assert not is_internal(name)


def test_hidden_names() -> None:
    assert is_hidden("_helper")
    assert is_internal("open", io.open)
    assert not is_internal("open", 5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("password", "x"), ("dbPassword", "x"), ("HF_TOKEN", "x"), ("openai_api_key", "x"),
        ("credentials", {"user": "x"}), ("secret", b"x"), ("access_key", "x"),
        ("x", "AKIAABCDEFGHIJKLMNOP"), ("config", "-----BEGIN RSA PRIVATE KEY-----\nabc"),
        ("y", "hf_abcdefghijklmnopqrstuv"), ("z", "ghp_abcdefghijklmnopqrstuv"),
    ],
)  # fmt: skip
def test_secrets(name: str, value: Any) -> None:
    assert looks_secret(name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("token", 5), ("tokens", ["a"]), ("input_tokens", [1]), ("monkey", "x"), ("keys", ["x"]),
        ("secretary", "x"), ("password", ""), ("get_token", len), ("key", "x"), ("passwords", None),
        ("text", "sk-learn is a package"),
    ],
)  # fmt: skip
def test_no_secrets(name: str, value: Any) -> None:
    assert not looks_secret(name, value)


def test_import_paths() -> None:
    assert import_path(os.path) == "os.path"
    assert import_path(xml.dom) == "xml.dom"
    assert import_path(type(os)("made_here")) is None


def test_a_module_inside_an_extension_is_found_by_its_attribute(monkeypatch: Any) -> None:
    extension, inner = types.ModuleType("an_extension"), types.ModuleType("inner")
    extension.inner = inner  # type: ignore[attr-defined]
    assert import_path(inner) is None
    monkeypatch.setitem(sys.modules, "an_extension", extension)
    assert import_path(inner) == "an_extension.inner"
    assert find("an_extension.inner") is inner
    with pytest.raises(ModuleNotFoundError):
        find("an_extension.other")
