"""What else only a page shows: late output, prompts, updates in place, and that it stays usable."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.browser.lab import Book

pytestmark = pytest.mark.cluster

REMOTE = "%%remote --quiet\n"


def test_late_output_of_a_thread_lands_in_its_cell(book: Book) -> None:
    """Also while another cell runs, and after it; prints, displays and updates."""
    cell = book.ok(
        REMOTE
        + "import threading, time\ngo = threading.Event()\n"
        + "def work():\n"
        + "    go.wait(30)\n    for i in range(3):\n        print('late', i, flush=True)\n"
        + "        time.sleep(0.05)\n"
        + "    display('late display')\n"
        + "threading.Thread(target=work).start()\nprint('started')"
    )
    other = book.ok(REMOTE + "go.set()\nprint('another cell')\ntime.sleep(0.5)")
    text = book.shows(cell, "late display")
    assert [line for line in text.split("\n") if line.strip()] == [
        "started",
        "late 0",
        "late 1",
        "late 2",
        "'late display'",
    ]
    assert "late" not in book.text(other)
    saved = book.save().cells[cell]
    assert "late 2" in "".join(each.get("text", "") for each in saved.outputs)


def test_input_prompts_in_the_page(book: Book) -> None:
    cell = book.start(REMOTE + "name = input('your name? ')\nprint('hello', name)")
    box = book.cell(cell).locator(".jp-Stdin-input")
    book.until(lambda: box.count() == 1, "the prompt is there")
    assert "your name?" in book.cell(cell).locator(".jp-Stdin-prompt").inner_text()
    box.fill("Ada")
    box.press("Enter")
    book.shows(cell, "hello Ada")
    book.ended(cell)
    # JupyterLab keeps the prompt of a widget that was answered in the page, hidden.
    assert " ".join(book.text(cell).split()).startswith("your name? Ada hello Ada")


def test_getpass_hides_what_is_typed(book: Book) -> None:
    cell = book.start(
        REMOTE + "from getpass import getpass\nprint(len(getpass('secret: ')), 'letters')"
    )
    box = book.cell(cell).locator(".jp-Stdin-input")
    book.until(lambda: box.count() == 1, "the prompt is there")
    assert box.get_attribute("type") == "password"
    box.fill("hunter2")
    box.press("Enter")
    assert "hunter2" not in book.shows(cell, "7 letters")
    book.ended(cell)


def test_a_prompt_can_be_interrupted(book: Book) -> None:
    cell = book.start(REMOTE + "input('never answered ')")
    book.until(lambda: book.cell(cell).locator(".jp-Stdin-input").count() == 1, "it asks")
    book.interrupt()
    book.ended(cell, timeout=15)
    assert "KeyboardInterrupt" in book.text(cell)
    assert book.text(book.ok(REMOTE + "print('goes on')")).strip() == "goes on"


def test_updates_in_place(book: Book) -> None:
    """A display made by one remote cell, updated by a later one and by a local one."""
    cell = book.ok(
        REMOTE + "from IPython.display import HTML, update_display\n"
        "display(HTML('<b class=\"mine\">first</b>'), display_id='mine')"
    )
    box = book.outputs(cell).locator(".mine")
    assert box.inner_text() == "first"
    later = book.ok(
        REMOTE + "update_display(HTML('<b class=\"mine\">second</b>'), display_id='mine')"
    )
    book.until(lambda: box.inner_text() == "second", "updated by a remote cell")
    assert book.text(later) == ""
    book.ok(
        "from IPython.display import HTML, update_display\n"
        "update_display(HTML('<b class=\"mine\">third</b>'), display_id='mine')"
    )
    book.until(lambda: box.inner_text() == "third", "updated by a local cell")


def test_clearing_in_a_loop_leaves_the_last_and_the_footer(book: Book) -> None:
    cell = book.ok(
        "%%remote\nfrom IPython.display import clear_output\n"
        "for step in range(20):\n    print('step', step)\n    clear_output(wait=True)"
    )
    text = book.shows(cell, "simulated prices")
    assert text.split("\n")[0] == "step 19"
    assert "step 18" not in text


def test_figures_and_tables_are_drawn(book: Book) -> None:
    cell = book.ok(
        REMOTE + "import matplotlib.pyplot as plt, pandas as pd\n"
        "plt.figure(figsize=(2, 1)); plt.plot([1, 2]); plt.show()\n"
        "display(pd.DataFrame({'a': [1, 2]}))\n"
        "from IPython.display import Javascript, Latex, Markdown\n"
        "display(Markdown('**strong**'), Latex('$x^2$'), Javascript('element.append(6 * 7)'))"
    )
    outputs = book.outputs(cell)
    book.until(lambda: outputs.locator("mjx-container, .MathJax").count() > 0, "LaTeX is set")
    width = outputs.locator("img").first.evaluate("image => image.naturalWidth")
    assert width > 100
    assert outputs.locator("table td").all_inner_texts() == ["1", "2"]
    assert outputs.locator("strong").inner_text() == "strong"
    book.shows(cell, "42")


def test_help_opens_the_pager(book: Book) -> None:
    """`x?` in a remote cell: as everywhere, JupyterLab shows it below the cell."""
    cell = book.run(REMOTE + 'def documented():\n    """What it is for."""\n\ndocumented?')
    book.shows(cell, "What it is for.")


def test_a_cell_that_prints_forever_leaves_the_page_usable(book: Book) -> None:
    cell = book.start(REMOTE + "i = 0\nwhile True:\n    i += 1\n    print('line', i)")
    book.shows(cell, re.compile(r"line \d+"))
    first = max(_responses(book, 10))  # while the first megabytes come
    then = max(_responses(book, 10))
    book.interrupt()
    book.ended(cell, timeout=30)
    # Beside another test, on two cores: such seconds are long.
    assert first < 20.0, f"the page stood still for {first:.1f} s"
    assert then < 3.0, f"the page stood still for {then:.1f} s"
    print(f"it stood still for {first:.1f} s, then for {then:.1f} s")
    assert "KeyboardInterrupt" in book.text(cell)


def _responses(book: Book, count: int) -> Iterator[float]:
    for _ in range(count):
        yield book.responds_within()
        book.page.wait_for_timeout(200)
