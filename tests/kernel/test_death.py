"""A kernel that dies takes its cell, not its session: the message says why, the state is back."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mlcloud import errors
from mlcloud.client.session import Session

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import os; os._exit(3)", "exit code 3"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("import os; os.abort()", "SIGABRT"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
    ],
    ids=["exit", "segfault", "abort", "kill"],
)
def test_says_why_and_keeps_the_earlier_state(
    session: Callable[..., Session], code: str, says: str
) -> None:
    s = session()
    s.run("kept = [1, 2]\ndef twice(x): return 2 * x", durable=True, quiet=True)
    with pytest.raises(errors.KernelDied, match=says):
        s.run(f"kept.append(3)\nprint('last words')\n{code}")
    assert s["kept"] == [1, 2]
    s.run("after = twice(len(kept))", quiet=True)
    assert s["after"] == 4


def test_what_was_printed_before_arrives(
    session: Callable[..., Session], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(errors.KernelDied):
        session().run(
            "import os, sys\nfor i in range(5_000): print(i)\nsys.stdout.flush()\nos._exit(1)"
        )
    assert capsys.readouterr().out.split() == [str(i) for i in range(5_000)]


def test_more_memory_than_asked_for_ends_the_cell(session: Callable[..., Session]) -> None:
    s = session(memory="512MB")
    s.run("kept = 1", durable=True, quiet=True)
    with pytest.raises(errors.KernelDied, match=r"memory of 488 ?MiB|memory of 512 ?MB"):
        s.run(
            "import time\nblocks = []\nfor i in range(100):\n"
            "    blocks.append(bytearray(50_000_000)); time.sleep(0.05)"
        )
    assert s["kept"] == 1


def test_memory_of_children_counts(session: Callable[..., Session]) -> None:
    s = session(memory="512MB")
    s.run("kept = 1", durable=True, quiet=True)
    with pytest.raises(errors.KernelDied, match="memory"):
        s.run(
            "import subprocess, sys\n"
            "subprocess.run([sys.executable, '-c',"
            " 'import time; x = bytearray(700_000_000); time.sleep(60)'])"
        )
    assert s["kept"] == 1


def test_between_cells_the_kernel_comes_back_by_itself(session: Callable[..., Session]) -> None:
    s = session()
    s.run(
        "kept = 1\nimport os, threading\nthreading.Timer(1.0, os._exit, [7]).start()",
        durable=True,
        quiet=True,
    )
    s.run("import os; first = os.getpid()", durable=True, quiet=True)
    from tests.live import events, until

    until(
        lambda: any(
            each["kind"] == "story" and each["content"]["what"] == "restored" for each in events(s)
        ),
        "the session's state is restored",
    )
    s.run("assert kept == 1 and os.getpid() != first", quiet=True)
