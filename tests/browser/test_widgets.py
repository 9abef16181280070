"""Widgets made in a remote cell live in a real page: while the cell runs, after it, after a reload.

Each test proves the same thing that a local widget does; what differs is only the first line.
"""

from __future__ import annotations

import re

import pytest

from tests.browser.lab import Book

pytestmark = pytest.mark.cluster

SLIDER = ".widget-slider"
REMOTE = "%%remote --quiet\nfrom ipywidgets import *\n"


def value_of(book: Book, cell: int) -> str:
    return book.outputs(cell).locator(".widget-readout").first.inner_text()


def agrees(book: Book, cell: int, values: str) -> None:
    """Wait until these values in the session are what the page shows: the page sends a widget's
    next value when it hears that the last one was handled."""
    asked = book.add(REMOTE + f"print({values})")

    def same() -> bool:
        book.ok(asked)
        return set(book.text(asked).split()) == {value_of(book, cell)}

    book.until(same, f"{values} are as in the page", otherwise=lambda: book.text(asked))


def test_a_slider_moved_while_the_cell_runs(book: Book) -> None:
    """Its callback runs remotely, the cell sees the value, and what it prints shows at once."""
    cell = book.start(
        REMOTE
        + "import time\n"
        + "moved = []\nslider = IntSlider(max=100, description='lr')\n"
        + "slider.observe(lambda change: moved.append(change['new']), 'value')\n"
        + "display(slider)\nprint('waiting')\n"
        + "while slider.value < 50:\n    time.sleep(0.05)\n"
        + "print('reached', slider.value, moved[-1] == slider.value, len(moved) > 1)"
    )
    book.shows(cell, "waiting")
    assert book.prompt(cell) == "*"
    book.drag(book.outputs(cell).locator(SLIDER), 0.8)
    text = book.shows(cell, "reached", timeout=10)
    book.ended(cell)
    found = re.search(r"reached (\d+) True True", text)
    assert found is not None, text
    assert 50 <= int(found[1]) <= 100


def test_a_slider_moved_after_the_cell_and_from_it(book: Book) -> None:
    """The page's value is there in the next cell; a cell's value moves the handle in the page."""
    cell = book.ok(
        REMOTE
        + "after = IntSlider(max=100)\nseen = []\n"
        + "after.observe(lambda change: seen.append(change['new']), 'value')\nafter"
    )
    book.drag(book.outputs(cell).locator(SLIDER), 0.3)
    book.until(lambda: 25 < int(value_of(book, cell)) < 35, "the handle is where it was dragged")
    agrees(book, cell, "after.value, seen[-1]")
    book.ok(REMOTE + "after.value = 77")
    book.until(lambda: value_of(book, cell) == "77", "the page follows the cell")


def test_interact_runs_remotely(book: Book) -> None:
    cell = book.ok(
        REMOTE
        + "import os\nhere = os.getpid()\n"
        + "@interact(n=(0, 100))\n"
        + "def show(n=10):\n    print('n is', n, 'in the session' if os.getpid() == here else '')"
    )
    book.shows(cell, "n is 10 in the session")
    book.drag(book.outputs(cell).locator(SLIDER), 1.0)
    assert "n is 10 " not in book.shows(cell, "n is 100 in the session")


def test_an_output_widget_captures(book: Book) -> None:
    """What a cell, and later a callback, prints in it appears in it and nowhere else."""
    cell = book.ok(
        REMOTE
        + "out = Output()\nbutton = Button(description='press')\n"
        + "@button.on_click\n"
        + "def pressed(_):\n    with out:\n        print('pressed')\n        display('shown too')\n"
        + "display(VBox([button, out]))\n"
        + "with out:\n    print('captured')\n"
        + "print('outside')"
    )
    inside = book.outputs(cell).locator(".widget-output")
    book.until(lambda: "captured" in inside.inner_text(), "the widget has what was printed in it")
    assert "outside" not in inside.inner_text()
    assert book.text(cell).count("captured") == 1
    book.outputs(cell).locator("button").click()
    book.until(lambda: "shown too" in inside.inner_text(), "the callback's output is in it")
    assert inside.inner_text().split() == ["captured", "pressed", "'shown", "too'"]
    book.ok(REMOTE + "out.clear_output(wait=True)\nwith out:\n    print('anew')")
    book.until(lambda: inside.inner_text().strip() == "anew", "it was cleared")


def test_a_button_pressed_while_the_cell_runs(book: Book) -> None:
    cell = book.start(
        REMOTE
        + "import time\nstop = []\nend = Button(description='stop')\n"
        + "end.on_click(lambda button: stop.append(button.description))\ndisplay(end)\n"
        + "while not stop:\n    time.sleep(0.02)\nprint('stopped by', *stop)"
    )
    book.until(lambda: book.outputs(cell).locator("button").count() == 1, "the button is there")
    book.outputs(cell).locator("button").click()
    book.shows(cell, "stopped by stop", timeout=10)
    book.ended(cell)


def test_links_and_play(book: Book) -> None:
    """jslink lives in the page alone; Play animates the page and calls the session."""
    cell = book.ok(
        REMOTE
        + "a, b = IntSlider(max=100), IntText()\njslink((a, 'value'), (b, 'value'))\n"
        + "played = []\nplay = Play(max=5, interval=50)\n"
        + "play.observe(lambda c: played.append(c['new']), 'value')\nVBox([a, b, play])"
    )
    book.drag(book.outputs(cell).locator(SLIDER), 0.6)
    box = book.outputs(cell).locator("input[type=number]")
    book.until(lambda: 50 < int(box.input_value()) < 70, "the linked box follows")
    book.outputs(cell).locator(".widget-play button").first.click()
    asked = book.add(REMOTE + "print('played', played)")

    def played() -> bool:
        book.ok(asked)
        return "5]" in book.text(asked)

    book.until(played, "it was played to its end", otherwise=lambda: book.text(asked))


ANY = """import anywidget, traitlets, hashlib
class Echo(anywidget.AnyWidget):
    _esm = '''
    async function digest(view) {
      const hash = await crypto.subtle.digest("SHA-256", view);
      return [...new Uint8Array(hash)].map(b => b.toString(16).padStart(2, "0")).join("");
    }
    function render({ model, el }) {
      const note = document.createElement("p");
      note.className = "echo";
      el.append(note);
      const show = async () => {
        const data = model.get("data");
        note.textContent = data.byteLength + " " + await digest(data);
      };
      model.on("change:data", show);
      show();
      model.on("msg:custom", (content, buffers) => {
        const sum = new Uint8Array(buffers[0].buffer, buffers[0].byteOffset, buffers[0].byteLength)
          .reduce((a, b) => a + b, 0);
        model.send({ answer: content.question + "!", sum }, undefined, [new Uint8Array([7, 8, 9])]);
      });
      const send = document.createElement("button");
      send.textContent = "send";
      send.onclick = () => {
        const big = new Uint8Array(2_000_000).map((_, i) => i % 251);
        model.set("back", new DataView(big.buffer));
        model.save_changes();
      };
      el.append(send);
    }
    export default { render };
    '''
    data = traitlets.Bytes(b"").tag(sync=True)
    back = traitlets.Any(b"").tag(sync=True)
"""


def test_buffers_travel_both_ways(book: Book) -> None:
    """2 MB of a trait to the page and 2 MB back, and messages with buffers, unharmed."""
    cell = book.ok(
        REMOTE
        + ANY
        + "data = bytes(i % 249 for i in range(2_000_000))\necho = Echo(data=data)\ngot = []\n"
        + "echo.on_msg(lambda w, content, buffers: got.append((content, bytes(buffers[0]))))\n"
        + "display(echo)\nprint(len(data), hashlib.sha256(data).hexdigest())"
    )
    wanted = book.shows(cell, re.compile("[0-9a-f]{64}"))
    line = next(each for each in wanted.split("\n") if each.startswith("2000000"))
    note = book.outputs(cell).locator(".echo")
    book.until(lambda: note.inner_text() == line.strip(), "the page has the bytes")
    book.outputs(cell).locator("button").click()
    asked = book.add(
        REMOTE + "print(len(echo.back), echo.back == bytes(i % 251 for i in range(2_000_000)))"
    )

    def back() -> bool:
        book.ok(asked)
        return "2000000 True" in book.text(asked)

    book.until(back, "the session has the page's bytes", otherwise=lambda: book.text(asked))
    book.ok(REMOTE + "echo.send({'question': 'how many'}, buffers=[bytes([1, 2, 3])])")
    asked = book.add(REMOTE + "print(got)")

    def answered() -> bool:
        book.ok(asked)
        return "[({'answer': 'how many!', 'sum': 6}, b'\\x07\\x08\\t')]" in book.text(asked)

    book.until(answered, "the page's answer came", otherwise=lambda: book.text(asked))


def test_a_progress_bar_advances_while_the_cell_runs(book: Book) -> None:
    cell = book.start(
        REMOTE
        + "import time\nfrom tqdm.notebook import tqdm\n"
        + "for step in tqdm(range(30), desc='training', mininterval=0):\n    time.sleep(0.1)"
    )
    bar = book.outputs(cell).locator("[role=progressbar], .progress-bar").first
    seen: set[str] = set()

    def three_widths() -> bool:
        if bar.count():
            seen.add(str(bar.get_attribute("style")))
        return len(seen) >= 3

    book.until(three_widths, "the bar grows")
    assert book.prompt(cell) == "*"
    book.ended(cell)
    assert "30/30" in book.shows(cell, "30/30")
    assert re.search(r"training:\s+100%", book.text(cell))


def test_widgets_survive_a_reload(book: Book) -> None:
    """The document is saved and the page loaded anew: the widget is there, with its state, and
    still speaks to its session."""
    cell = book.ok(
        REMOTE
        + "kept = IntSlider(max=100, value=12, description='kept')\nheard = []\n"
        + "kept.observe(lambda change: heard.append(change['new']), 'value')\nkept"
    )
    book.drag(book.outputs(cell).locator(SLIDER), 0.4)
    book.until(lambda: 35 < int(value_of(book, cell)) < 45, "it was dragged")
    agrees(book, cell, "kept.value, heard[-1]")
    before = value_of(book, cell)
    book.save()
    book.reload()
    book.until(
        lambda: book.outputs(cell).locator(SLIDER).count() == 1, "it is drawn after the reload"
    )
    book.until(lambda: value_of(book, cell) == before, "with its state")
    book.drag(book.outputs(cell).locator(SLIDER), 0.9)
    agrees(book, cell, "kept.value, heard[-1]")
    assert int(value_of(book, cell)) > 80
    book.ok(REMOTE + "kept.value = 5")
    book.until(lambda: value_of(book, cell) == "5", "the page follows the session")


def test_a_widget_of_a_local_cell_still_works(book: Book) -> None:
    """The relay takes only the sessions' comms."""
    cell = book.ok("import ipywidgets\nlocal = ipywidgets.IntSlider(max=100)\nlocal")
    book.drag(book.outputs(cell).locator(SLIDER), 0.5)

    def agree() -> bool:  # what the page still has on its way comes after the first answer
        asked = book.ok("print(local.value)")
        return bool(book.text(asked).strip() == value_of(book, cell))

    book.until(agree, "the kernel has what the page shows")
    assert 40 < int(value_of(book, cell)) < 60
