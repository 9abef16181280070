"""Printed secrets are masked, also where the ends of pieces cut them; nothing else is lost."""

from __future__ import annotations

import asyncio
import random

from mlcloud.kernel.masking import HOLD_S, Masking
from mlcloud.values.secrets import Secrets

VALUE = "hf_abcabcabd-0123456789"


def made() -> tuple[Masking, list[tuple[str, str, str]]]:
    seen: list[tuple[str, str, str]] = []
    masking = Masking(lambda *text: seen.append(text))
    masking.secrets = Secrets({"HF_TOKEN": VALUE})
    return masking, seen


async def test_cut_anywhere() -> None:
    text = f"a{VALUE}b hf_abcabc{VALUE}{VALUE}\nhf_abcabcab"
    dice = random.Random(1)
    for _ in range(300):
        masking, seen = made()
        rest = text
        while rest:
            length = dice.randint(1, 9)
            masking.text("x", "stdout", rest[:length])
            rest = rest[length:]
        masking.flush()
        shown = "".join(each for _, _, each in seen)
        assert shown == "a***b hf_abcabc******\nhf_abcabcab"


async def test_what_was_no_beginning_comes_by_itself() -> None:
    masking, seen = made()
    masking.text("x", "stdout", "name: hf_")
    assert seen == [("x", "stdout", "name: ")]
    await asyncio.sleep(HOLD_S * 1.5)
    assert seen[1:] == [("x", "stdout", "hf_")]


async def test_letter_by_letter_on_a_busy_machine() -> None:
    """All of it takes longer than a beginning is held, and one pause does."""
    masking, seen = made()
    for number, letter in enumerate(VALUE):
        masking.text("x", "stdout", letter)
        await asyncio.sleep(HOLD_S * 1.5 if number == 8 else HOLD_S / 6)
    masking.text("x", "stdout", "\n")
    assert "".join(each for _, _, each in seen) == "***\n"


async def test_a_pause_after_any_letter_shows_what_came_before_it_only() -> None:
    for pause in range(len(VALUE)):
        masking, seen = made()
        masking.text("x", "stdout", f"so {VALUE[:pause]}")
        masking.flush()
        for letter in f"{VALUE[pause:]}. h":
            masking.text("x", "stdout", letter)
        masking.flush()
        assert "".join(each for _, _, each in seen) == f"so {VALUE[:pause]}***. h"


async def test_a_pause_after_what_was_no_beginning_changes_nothing() -> None:
    text = "hf_hf_abc hf_abcabcab\n"
    for pause in range(len(text)):
        masking, seen = made()
        for number, letter in enumerate(text):
            masking.text("x", "stdout", letter)
            if number == pause:
                masking.flush()
        assert "".join(each for _, _, each in seen) == text


async def test_streams_keep_their_order_and_cells_their_text() -> None:
    masking, seen = made()
    masking.text("x", "stdout", "h")
    masking.text("x", "stderr", "error")
    masking.text("y", "stdout", "next h")
    masking.flush()
    assert seen == [
        ("x", "stdout", "h"),
        ("x", "stderr", "error"),
        ("y", "stdout", "next "),
        ("y", "stdout", "h"),
    ]


async def test_without_secrets_text_goes_through_at_once() -> None:
    masking, seen = made()
    masking.secrets = Secrets()
    masking.text("x", "stdout", "hf_")
    assert seen == [("x", "stdout", "hf_")]
