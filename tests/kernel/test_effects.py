"""What a cell does outside its session is seen as it happens."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

WATCH = """
import os, sys
from pathlib import Path
from mlcloud.kernel.effects import Effects

workspace = Path({workspace!r})
os.chdir(workspace)
effects = Effects(workspace, [{own!r}])
told = []
effects.begin(told.append)
{code}
print(*effects.end(), sep="\\n")
print("told:", *told, sep="\\n")
"""


def watched(folder: Path, code: str) -> tuple[list[str], list[str]]:
    """What the code has done, and what of it was told."""
    home, workspace, own = (folder / name for name in ("home", "work", "store"))
    for each in (home, workspace, own):
        each.mkdir(exist_ok=True)
    script = WATCH.format(workspace=str(workspace), own=str(own), code=textwrap.dedent(code))
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "HOME": str(home), "TMPDIR": str(folder / "tmp")},
        capture_output=True,
        text=True,
        check=True,
    )
    ended, _, told = done.stdout.partition("told:\n")
    return ended.split("\n")[:-1] if ended.strip() else [], told.splitlines()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One that is not in the system's temporary folder, as far as the code knows."""
    (tmp_path / "tmp").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    "code",
    [
        "open('here.txt', 'w').write('x')",
        "open(os.devnull, 'w').write('x')",
        "open('/proc/self/status').read()",
        "os.makedirs('a/b'); os.rename('a/b', 'a/c'); os.rmdir('a/c')",
        "(Path.home() / '.cache').mkdir(); (Path.home() / '.cache' / 'x').write_text('x')",
        "import tempfile; os.makedirs(f'{tempfile.gettempdir()}/torchinductor_me', exist_ok=True)",
        "import subprocess; subprocess.run(['ls', '/'], capture_output=True)",
    ],
)
def test_what_counts_for_nothing(folder: Path, code: str) -> None:
    assert watched(folder, code) == ([], [])


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import socket; s = socket.socket(); s.settimeout(0.1)\n"
         "try: s.connect(('192.0.2.1', 25))\nexcept OSError: pass", "connected to 192.0.2.1:25"),
        ("import subprocess\ntry: subprocess.run(['scp', 'a', 'b:'])\nexcept OSError: pass",
         "ran `scp a b:`"),
        ("os.system('git push --dry-run 2> /dev/null')", "ran `git push --dry-run 2> /dev/null`"),
    ],
)  # fmt: skip
def test_what_is_sent_is_told(folder: Path, code: str, words: str) -> None:
    assert watched(folder, code) == ([words], [words])


def test_scratch_is_known_and_not_told(folder: Path) -> None:
    done, told = watched(folder, "import tempfile\ntempfile.NamedTemporaryFile().write(b'x')")
    assert len(done) == 1
    assert "tmp" in done[0]
    assert told == []
