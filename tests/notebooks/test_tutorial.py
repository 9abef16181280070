"""The first tutorial, run as `make demo` runs it: what its executed notebook shows a reader."""

from __future__ import annotations

import re
from typing import Any

import nbformat
import pytest

from notebooks.demo import NOTEBOOK, Story, run

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(420)]

EPOCHS = 60


class Executed:
    """The demo's story, what it said on the way, and the notebook that it wrote."""

    def __init__(self, story: Story, said: list[str]) -> None:
        self.story = story
        self.said = said
        self.notebook = nbformat.read(story.notebook, as_version=4)

    def outputs(self, tag: str) -> list[Any]:
        found = [c for c in self.notebook.cells if tag in c.metadata.get("tags", [])]
        assert len(found) == 1, f"cells tagged {tag!r}: {len(found)}"
        outputs: list[Any] = found[0].outputs
        return outputs

    def text(self, tag: str) -> str:
        return "\n".join(
            str(each.get("text") or each.get("data", {}).get("text/plain", ""))
            for each in self.outputs(tag)
        )

    def lines(self, tag: str) -> list[str]:
        """What mlcloud itself said under a cell, in order, its marks left out."""
        return [
            each["metadata"]["mlcloud"]["line"]
            for each in self.outputs(tag)
            if "line" in each.get("metadata", {}).get("mlcloud", {})
        ]

    def footer(self, tag: str) -> dict[str, Any]:
        (figures,) = (
            each["metadata"]["mlcloud"]
            for each in self.outputs(tag)
            if "usd" in each.get("metadata", {}).get("mlcloud", {})
        )
        return dict(figures)


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Executed:
    said: list[str] = []
    return Executed(run(tmp_path_factory.mktemp("demo"), said.append), said)


def position(lines: list[str], words: str) -> int:
    """Where the first line with these words is; fails with all lines if there is none."""
    for i, line in enumerate(lines):
        if words in line:
            return i
    pytest.fail(f"no line says {words!r}: {lines}")


def test_the_move_is_told_in_order(executed: Executed) -> None:
    lines = executed.lines("train")
    told = ["notice: the cloud takes", "was preempted", "moved to", "runs again", "resumed at step"]
    places = [position(lines, words) for words in told]
    assert places == sorted(places)


def test_training_resumed_from_a_checkpoint_and_repeated_no_epoch(executed: Executed) -> None:
    resumed = re.search(r"resumed at step (\d+)", executed.text("train"))
    assert resumed is not None
    assert 0 < int(resumed[1]) < EPOCHS
    assert f"{EPOCHS}/{EPOCHS} epochs" in executed.text("train")


def test_the_footer_says_what_it_cost_and_that_it_moved(executed: Executed) -> None:
    figures = executed.footer("train")
    assert figures["moves"] >= 1
    assert figures["market"] == "spot"
    assert float(figures["usd"]) > 0
    assert figures["simulated"] is True
    assert "moved once · simulated prices" in executed.text("train")
    assert executed.footer("first-remote")["moves"] == 0


@pytest.mark.parametrize("tag", ["data", "back", "loss-curve", "confusion"])
def test_figures_are_drawn(executed: Executed, tag: str) -> None:
    assert any("image/png" in each.get("data", {}) for each in executed.outputs(tag))


def test_the_model_is_good(executed: Executed) -> None:
    found = re.search(r"test accuracy: ([\d.]+)", executed.text("evaluate"))
    assert found is not None
    assert float(found[1]) > 0.9


def test_dry_shows_what_would_ship(executed: Executed) -> None:
    assert re.search(r"train_x\s+ndarray\s+345 kB\s+new\s+notebook\s+ship", executed.text("dry"))


def test_cost_and_status_say_that_prices_are_simulated(executed: Executed) -> None:
    assert re.search(r"^\$0\.0\d+ so far, .*simulated prices", executed.text("cost"))
    assert "(simulated prices)" in executed.text("status")


def test_the_demo_checks_itself_and_tells_what_happened(executed: Executed) -> None:
    assert [name for name, passed in executed.story.checks() if not passed] == []
    for words in ("notice: the cloud takes", "moved to", "resumed at step", "moved once"):
        assert any(words in line for line in executed.said), words


def test_an_html_copy_is_written(executed: Executed) -> None:
    page = executed.story.html.read_text()
    assert "Your first remote cell" in page
    assert "resumed at step" in page
    assert page.count("data:image/png") >= 4


def test_the_committed_notebook_has_no_outputs() -> None:
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
            assert cell.metadata.get("tags")
