"""Secrets are found in what is pickled and shown, however it is written there."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from mlcloud.errors import NotPicklable
from mlcloud.values.pickling import dump
from mlcloud.values.reducers import Classes
from mlcloud.values.secrets import Secrets

VALUE = 'hf_"Zq8/+x\\7é Kw'
HELD = Secrets({"HF_TOKEN": VALUE, "PIN": "1234"})


class Client:
    def __init__(self, token: str) -> None:
        self.token = token


@pytest.mark.parametrize(
    "value",
    [
        VALUE,
        VALUE.encode(),
        {"a": [1, {"deep": "Bearer " + VALUE}]},
        np.array(["x", VALUE]),
        np.frombuffer(b"z" * 100_000 + VALUE.encode(), dtype="u1"),
        Client(VALUE),
        (lambda token=VALUE: token),
        bytearray(VALUE.encode()),
    ],
    ids=["str", "bytes", "nested", "numpy-text", "numpy-bytes", "object", "default", "bytearray"],
)
def test_no_pickle_holds_a_secret(value: Any) -> None:
    classes = Classes()
    dump((value,), {}, classes=classes, name="v")
    classes.secrets = HELD
    with pytest.raises(NotPicklable, match="holds the secret HF_TOKEN") as raised:
        dump((value,), {}, classes=classes, name="v", wrapped=True)
    assert raised.value.holds == "it holds the secret HF_TOKEN"
    assert VALUE not in str(raised.value)


def test_what_only_resembles_it_is_pickled() -> None:
    classes = Classes()
    classes.secrets = HELD
    for value in (VALUE[:-1], 1234, "1234", VALUE.upper(), np.zeros(10**6)):
        assert dump(value, {}, classes=classes).size


@pytest.mark.parametrize("written", [str, repr, lambda text: __import__("json").dumps(text)])
def test_masked_as_it_is_shown(written: Any) -> None:
    text = f"before {written(VALUE)} after 1234"
    masked = HELD.mask(text)
    assert "Zq8" not in masked
    assert masked.startswith("before ")
    assert masked.endswith(" after 1234")


def test_a_key_of_several_lines_is_masked_line_by_line() -> None:
    lines = ["-----BEGIN PRIVATE KEY-----", "MIIEvQIBADANBgkqhkiG9w0B", "AQEFAASCBKcwggSjAgEAAoIB"]
    held = Secrets({"KEY": "\n".join(lines) + "\n"})
    assert held.mask(f"[1] {lines[1]}\n[2] {lines[2]}") == "[1] ***\n[2] ***"


def test_messages_are_masked_in_all_their_parts() -> None:
    content = {"data": {"text/html": f"<b>{VALUE}</b>", VALUE: [1, VALUE, None]}, "buffers": [b"x"]}
    assert HELD.masked(content) == {
        "data": {"text/html": "<b>***</b>", "***": [1, "***", None]},
        "buffers": [b"x"],
    }


def test_a_longer_secret_wins_over_one_that_it_begins_with() -> None:
    held = Secrets({"A": "abcdefgh", "B": "abcdefghijkl"})
    assert held.mask("abcdefghijkl abcdefgh") == "*** ***"


def test_its_values_are_in_no_repr_and_no_pickle() -> None:
    assert VALUE not in repr(HELD) + str(HELD.__dict__.keys())
    with pytest.raises(TypeError):
        pickle.dumps(HELD)
    assert HELD.unmasked == ["PIN"]
    assert not Secrets()
