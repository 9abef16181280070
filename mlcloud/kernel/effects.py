"""What a cell does to the world outside its session: seen as it happens, told before it is done.

    Python's audit events ─► Effects ─► tell("wrote to /data/out.csv")     each kind once a cell

A cell that was cut short runs again; one that has written a file or posted a request would do that
twice, so its user is asked first. What counts: writing, moving or removing files outside of the
workspace, temporary folders and caches; HTTP requests that are no reads; connections that other
code makes by a plain socket to another machine; commands that are known to send.

What is not seen: what native code does without Python (libpq, gRPC), and what other commands do.
"""

from __future__ import annotations

import ipaddress
import os
import shlex
import sys
import tempfile
import threading
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Tell = Callable[[str], None]

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_READING_METHODS = (b"GET ", b"HEAD ", b"OPTIONS ", b"PROPFIND ")
_CHANGES = {
    **{"os.remove": "removed", "os.rmdir": "removed", "os.truncate": "wrote to"},
    **{"os.rename": "moved", "os.link": "linked", "os.symlink": "linked", "os.mkdir": "made"},
}
_SENDERS = frozenset(
    {"curl", "scp", "sftp", "rsync", "ssh", "aws", "gsutil", "gcloud", "az", "azcopy", "kubectl"}
    | {"psql", "mysql", "redis-cli", "mail", "sendmail", "twine", "huggingface-cli", "hf", "rclone"}
)
_READERS = frozenset({"http", "urllib", "urllib3", "requests", "asyncio", "ssl"})
# What libraries make among temporary files for themselves.
_OF_LIBRARIES = ("torchinductor_", "matplotlib-", "pymp-", "joblib_memmapping_folder_")
_CACHES = frozenset({"nltk_data", "scikit_learn_data", "seaborn-data", "tensorflow_datasets"})


class Effects:
    """Watches this process while a cell runs: `begin(tell)`, then `end()`, which lists them.

    Made once: an audit hook stays for the life of its process.
    """

    def __init__(self, workspace: Path, own: Iterable[str] = ()) -> None:
        self._inside = [
            *(str(workspace.resolve()), "/dev", "/proc", "/sys", "/run"),
            *(os.path.realpath(sys.prefix), *map(os.path.realpath, own)),
        ]
        self._scratch = [os.path.realpath(tempfile.gettempdir()), "/tmp", "/var/tmp"]
        self._home = os.path.realpath(os.path.expanduser("~"))
        self._tell: Tell | None = None
        self._found: dict[str, str] = {}
        self._busy = threading.local()
        sys.addaudithook(self._hook)

    def begin(self, tell: Tell) -> None:
        self._found, self._tell = {}, tell

    def end(self) -> list[str]:
        """What the cell has done, in words that follow its name: "wrote to …".

        Scratch is among it, though not told: a cell that was cut short may write it again, but one
        that had ended does not run again only to make a value.
        """
        self._tell = None
        return list(self._found.values())

    # --- the hook: called for everything, by any thread; it must be quick and never raise ---------

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._tell is None:
            return
        look = _LOOKS.get(event)
        if look is None or getattr(self._busy, "now", False):
            return
        self._busy.now = True
        try:
            said = look(self, event, arguments)
            if said is not None:
                self._note(*said)
        except Exception:  # never the cell's trouble
            pass
        finally:
            self._busy.now = False

    def _note(self, kind: str, words: str) -> None:
        tell = self._tell
        if kind not in self._found and tell is not None and not _is_store_working():
            self._found[kind] = words
            if kind != "scratch":
                tell(words)

    def _open(self, _: str, arguments: tuple[Any, ...]) -> tuple[str, str] | None:
        path, mode, flags = arguments
        if isinstance(mode, str):
            writes = not set("wax+").isdisjoint(mode)
        else:
            writes = bool(isinstance(flags, int) and flags & _WRITES)
        if not writes or not isinstance(path, (str, bytes, os.PathLike)):
            return None
        return self._changed("wrote to", path)

    def _change(self, event: str, arguments: tuple[Any, ...]) -> tuple[str, str] | None:
        paths = arguments[:2] if event in ("os.rename", "os.link", "os.symlink") else arguments[:1]
        for path in paths:
            if isinstance(path, (str, bytes, os.PathLike)) and (
                said := self._changed(_CHANGES[event], path)
            ):
                return said
        return None

    def _changed(self, verb: str, path: Any) -> tuple[str, str] | None:
        full = os.path.realpath(os.fsdecode(path))
        if full.endswith(".pyc") or any(_below(full, folder) for folder in self._inside):
            return None
        if _below(full, self._home):
            first = full[len(self._home) :].lstrip("/").partition("/")[0]
            if first.startswith(".") or first in _CACHES:
                return None
        for folder in self._scratch:
            if _below(full, folder):
                first = full[len(folder) :].lstrip("/")
                return None if first.startswith(_OF_LIBRARIES) else ("scratch", f"{verb} {full}")
        return "files", f"{verb} {full}"

    def _connect(self, _: str, arguments: tuple[Any, ...]) -> tuple[str, str] | None:
        address = arguments[-1]
        if not isinstance(address, tuple) or not isinstance(address[0], str):
            return None
        if _is_local(address[0]) or _called_by(_READERS):
            return None
        return "network", f"connected to {address[0]}:{address[1]}"

    def _send(self, _: str, arguments: tuple[Any, ...]) -> tuple[str, str] | None:
        connection, data = arguments
        line = bytes(data[:2000]).partition(b"\r\n")[0] if isinstance(data, bytes) else b""
        if not line.endswith((b"HTTP/1.1", b"HTTP/1.0")) or line.startswith(_READING_METHODS):
            return None
        method = line.partition(b" ")[0].decode("ascii", "replace")
        return "network", f"sent a {method} request to {connection.host}"

    def _command(self, event: str, arguments: tuple[Any, ...]) -> tuple[str, str] | None:
        command: Any = arguments[0] if event == "os.system" else arguments[1]
        single = isinstance(command, (str, bytes))
        text = command if single else b" ".join(map(os.fsencode, command))
        text = os.fsdecode(text)
        try:
            words = shlex.split(text.replace(";", " ").replace("|", " ").replace("&", " "))
        except ValueError:
            words = text.split()
        names = {word.rpartition("/")[2] for word in words} & _SENDERS
        pushes = "git" in words and "push" in words
        return ("network", f"ran `{text[:80]}`") if names or pushes else None


_LOOKS: dict[str, Callable[[Effects, str, tuple[Any, ...]], tuple[str, str] | None]] = {
    "open": Effects._open,
    **dict.fromkeys(_CHANGES, Effects._change),
    "socket.connect": Effects._connect,
    "socket.sendto": Effects._connect,
    "http.client.send": Effects._send,
    "subprocess.Popen": Effects._command,
    "os.system": Effects._command,
}


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _is_local(host: str) -> bool:
    if host in ("localhost", ""):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified or address.is_link_local


def _called_by(packages: frozenset[str]) -> bool:
    """Whether a frame of the calling stack is of one of these."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] in packages:
            return True
        frame = frame.f_back
    return False


def _is_store_working() -> bool:
    """Whether the store moves data now: checkpoints are no effects."""
    store = sys.modules.get("mlcloud.store.access")
    return bool(store is not None and store.WORKING.count)
