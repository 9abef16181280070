"""A session's kernel begun anew, cells that depend on the one before, and parking what runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from mlcloud import errors
from mlcloud.cli import main
from mlcloud.client.api import Client
from mlcloud.client.session import Session
from tests.live import Embedded, Running, until

pytestmark = pytest.mark.cluster


def code_of(session: Session, execution_id: str) -> str:
    return session.execution_info(execution_id).state.value


def test_begun_anew(session: Callable[..., Session], client: Client) -> None:
    names: dict[str, Any] = {}
    s = session(namespace=names)
    s.run("import os\nx = [1]\npid = os.getpid()", durable=True, quiet=True)
    node, pid = s.info.node, names["pid"]
    running = Running(s, "print('begun')\nimport time\nwhile True:\n    time.sleep(0.05)")
    running.printed("begun")
    running.watch.restart()  # what runs is ended
    assert isinstance(running.error(), KeyboardInterrupt)
    s.run("left = 'x' in globals() or 'pid' in globals()\nnow = __import__('os').getpid()")
    assert (names["left"], s.info.node) == (False, node)
    assert names["now"] != pid

    # Taken back: it is in the history.
    before = [each.step for each in s.history() if "x" in each.names]
    s.restore(before[-1])
    s.run("y = x + [2]", quiet=True)
    assert names["y"] == [1, 2]

    # A parked one begins anew with its next cell, and its node is not asked for before.
    s.park(force=True)
    told = CliRunner().invoke(main, ["restart", s.name])
    assert "new kernel" in told.output, told.output
    assert s.state == "parked"
    s.run("left = 'y' in globals()", quiet=True)
    assert names["left"] is False


@pytest.mark.slow
def test_a_cell_that_does_not_yield_is_ended(session: Callable[..., Session]) -> None:
    s = session()
    stubborn = (
        "import time\nprint('begun')\nuntil = time.time() + 60\n"
        "while time.time() < until:\n    try:\n        time.sleep(0.05)\n"
        "    except KeyboardInterrupt:\n        pass"
    )
    running = Running(s, stubborn)
    running.printed("begun")
    began = time.monotonic()
    running.watch.park(stop=True, force=True)
    assert time.monotonic() - began < 40
    assert running.error() is not None
    assert s.state == "parked"


def test_cells_after_one_that_failed(session: Callable[..., Session], cluster: Embedded) -> None:
    """They do not run, though they were sent long before; one that asks for nothing does."""
    s = session()
    s.run("seen = []", quiet=True)
    channel = s.feed.channel

    def send(name: str, code: str, after: str | None) -> None:
        options = {} if after is None else {"after": after}
        channel.execute(
            {"op": "execute", "id": name, "kind": "cell", "code": code, "options": options}
        )

    send("chain-first", "import time; time.sleep(0.5); 1 / 0", None)
    send("chain-second", "seen.append(2)", "chain-first")
    send("chain-third", "seen.append(3)", "chain-second")
    send("chain-other", "seen.append(4)", None)
    until(lambda: code_of(s, "chain-other") in ("finished", "safe"), "the last one has run")
    assert s["seen"] == [4]
    assert [code_of(s, f"chain-{each}") for each in ("second", "third")] == ["failed", "failed"]
    assert s.execution_info("chain-second").runs == 0
    # Sent after that is known, it is dropped at once; after one that went well, it runs.
    send("chain-late", "seen.append(5)", "chain-first")
    send("chain-good", "seen.append(6)", "chain-other")
    until(lambda: code_of(s, "chain-good") in ("finished", "safe"), "that one has run")
    assert s["seen"] == [4, 6]
    with pytest.raises(errors.NotFound):
        s.execution_info("chain-none")
