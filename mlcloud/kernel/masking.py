"""Printed text on its way out of a kernel, without the values of the session's secrets.

    Output.on_text ─► Masking.text ─► Printed          `***` where a value was

Text comes in pieces, and a value may be cut by their ends: what may be a value's beginning is held
until the next piece of that stream tells. A letter or two may be anything's beginning and waits for
`HOLD_S`, more of them for `LIKELY_S`, each time anew. What was shown when its time was over is
remembered, so that only its own letters were shown where the rest of the value comes after all.
Shown is a value whose halves go to stdout and stderr.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from mlcloud.values.secrets import Secrets

HOLD_S, LIKELY_S = 0.1, 3.0
LIKELY = 4  # letters of a value that hardly anything else begins with
SECRETS = "MLCLOUD_SECRETS"

OnText = Callable[[str, str, str], None]


class Masking:
    """`on_text(execution id, stream, text)` hears what may be shown."""

    def __init__(self, on_text: OnText) -> None:
        self.secrets = Secrets()
        self._on_text = on_text
        self._held: dict[tuple[str, str], str] = {}
        self._shown: dict[tuple[str, str], str] = {}  # the beginning of what is held
        self._timer: asyncio.TimerHandle | None = None

    def text(self, execution_id: str, stream: str, text: str) -> None:
        """Text as it comes from the kernel."""
        if not self.secrets:
            self._on_text(execution_id, stream, text)
            return
        key = (execution_id, stream)
        if len(self._held) > (key in self._held):  # another stream's came before this
            self._release(key)
        shown = self._shown.pop(key, "")
        text = shown + self._held.pop(key, "") + text
        masked = self.secrets.mask(text)
        if masked.startswith(shown):
            masked = masked[len(shown) :]
        else:  # its first letters are on the screen already
            shown = ""
        begun = self.secrets.begun(shown + masked)
        held = masked[max(0, len(masked) - begun) :]
        if held:
            self._held[key] = held
            self._shown[key] = shown[len(shown) + len(masked) - begun :]
            self._wait()
        text = masked[: len(masked) - len(held)]
        if text:
            self._on_text(execution_id, stream, text)

    def _wait(self) -> None:
        """From the last piece on, since a value that is still coming may take its time."""
        self._stop()
        likely = any(
            len(self._shown.get(key, "") + held) >= LIKELY for key, held in self._held.items()
        )
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(LIKELY_S if likely else HOLD_S, self.flush)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def flush(self) -> None:
        """Nothing comes after what is held, or not in time. Where the rest of a value follows all
        the same, it is known as that."""
        self._stop()
        held = {key: self._shown.get(key, "") + text for key, text in self._held.items()}
        self._release(None)
        self._shown = held

    def _release(self, but: tuple[str, str] | None) -> None:
        for key in [key for key in self._held if key != but]:
            self._shown.pop(key, None)
            self._on_text(*key, self._held.pop(key))


# --- the kernel's environment --------------------------------------------------------------------


def as_variables(held: Secrets) -> dict[str, str]:
    """Secrets as a kernel finds them, and their names, by which it knows them as such."""
    values = held.values
    return {**values, SECRETS: ",".join(values)} if values else {}


def secrets_of(environment: Mapping[str, str]) -> Secrets:
    """What `as_variables` put there."""
    names = filter(None, environment.get(SECRETS, "").split(","))
    return Secrets({name: environment[name] for name in names if name in environment})
