"""What the ranks beside 0 showed: a line each that opens, and the same as text."""

from __future__ import annotations

from typing import Any

from mlcloud.kernel.folding import MOST, Folded


def shown(folded: Folded) -> dict[str, Any]:
    message = folded.message()
    assert message is not None
    data: dict[str, Any] = message[1]["content"]["data"]
    return data


def text(folded: Folded, rank: int, words: str) -> None:
    folded.add(rank, "stream", {"name": "stdout", "text": words})


def test_ranks_that_showed_the_same_share_a_line() -> None:
    folded = Folded("x-1", 4)
    for rank in (1, 3):
        text(folded, rank, "epoch 1\n")
    text(folded, 2, "epoch 1, and a word\n")
    assert shown(folded)["text/plain"] == ("ranks 1, 3:\n  epoch 1\nrank 2:\n  epoch 1, and a word")


def test_the_first_message_makes_the_display_and_the_later_ones_update_it() -> None:
    folded = Folded("x-1", 2)
    assert folded.message() is None
    text(folded, 1, "a\n")
    first = folded.message()
    assert first is not None
    assert folded.message() is None
    text(folded, 1, "b\n")
    second = folded.message()
    assert second is not None
    assert (first[0], second[0]) == ("display_data", "update_display_data")
    ids = {each[1]["content"]["transient"]["display_id"] for each in (first, second)}
    assert ids == {"mlcloud-ranks-x-1"}
    assert second[1]["content"]["metadata"] == {"mlcloud": {"ranks": [1]}}


def test_a_progress_bar_is_its_last_state() -> None:
    folded = Folded("x-1", 2)
    text(folded, 1, "10 %\r50 %\r100 %\ndone\n")
    assert shown(folded)["text/plain"] == "rank 1:\n  100 %\n  done"


def test_markup_in_what_was_printed_is_text() -> None:
    folded = Folded("x-1", 2)
    text(folded, 1, "<script>alert(1)</script> $5 and \x1b[31mred\x1b[0m\n")
    html = shown(folded)["text/html"]
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "\x1b" not in html
    assert "<details" in html


def test_of_much_text_the_end_is_kept_and_that_is_said() -> None:
    folded = Folded("x-1", 2)
    text(folded, 1, "first\n" + "x" * MOST + "\nlast\n")
    data = shown(folded)
    assert "first" not in data["text/plain"]
    assert data["text/plain"].endswith("last")
    assert "earlier text left out" in data["text/html"]


def test_figures_are_pictures_and_other_displays_text() -> None:
    folded = Folded("x-1", 2)
    content = {"data": {"image/png": "aGk=", "text/plain": "<Figure>"}, "metadata": {}}
    folded.add(1, "display_data", content)
    assert 'src="data:image/png;base64,aGk="' in shown(folded)["text/html"]
    folded.add(1, "clear_output", {})
    text(folded, 1, "after\n")
    data = shown(folded)
    assert "aGk=" not in data["text/html"]
    assert data["text/plain"] == "rank 1:\n  after"
