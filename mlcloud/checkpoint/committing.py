"""An encoded state becomes a step of a series: chunks first, then the manifest that names them.

content, blobs ─► segments ─ known? ─► chunks ─► manifest ─► committed
                    ▲                               ├─ a prune came in between ─► once more
                    └─ once more, the old one gone ─┼─ the step is there, damaged
                                                    └─ the step is there: the same is no error,
                                                       another is StepExists
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from blake3 import blake3

from mlcloud import errors
from mlcloud.checkpoint.segments import Known, Segment
from mlcloud.checkpoint.step import FORMAT, INLINE, KIND
from mlcloud.store import Store
from mlcloud.store.manifest import Manifest, canonical
from mlcloud.store.progress import shown


class Committer:
    """Writes the steps of one series, one at a time: its user sees to that."""

    def __init__(self, store: Store, name: str, known: Known) -> None:
        self._store, self._name, self._known = store, name, known

    def commit(
        self,
        step: int,
        content: dict[str, Any],
        buffers: Callable[[], Iterable[memoryview]],
        note: dict[str, Any],
        began: float,
        *,
        beside: bool,
    ) -> tuple[Manifest, int]:
        """The step's manifest, and how many bytes had to be uploaded for it.

        `content` is the step's, without digests; `buffers` gives the segments' bytes, as often as
        it is asked; `note` joins the manifest's body. `began`: by the monotonic clock. `beside` a
        training: only a few chunks are on their way at once. Raises StepExists.
        """

        def write() -> tuple[Manifest, int]:
            since = self._store.begin()
            body, segments = self._write(content, buffers(), since, beside=beside)
            new = body["new_bytes"]
            body |= {**note, "seconds": time.monotonic() - began}
            try:
                made = self._store.commit(KIND, self._name, step, body, since=since)
            except errors.StepExists:
                made, new = self._settle(step, body["digest"]), 0
            self._known.learn(segments, since)
            return made, new

        try:
            try:
                return write()
            except errors.Collected:  # a prune came in between: what is missing goes again
                self._known.forget()
                return write()
        except errors.Damaged:
            # The committed step cannot be loaded: ours takes its place.
            self._known.forget()
            self._store.discard(KIND, self._name, step)
            return write()

    def _write(
        self,
        content: dict[str, Any],
        buffers: Iterable[memoryview],
        since: int,
        *,
        beside: bool,
    ) -> tuple[dict[str, Any], list[Segment]]:
        """Upload the chunks; returns the body that names them."""
        total = sum(size for _, _, size in content["blobs"])
        with shown(f"saving {self._name}", total) as told:
            segments = self._known.write(buffers, since, beside=beside, told=told)
        refs = [ref for segment in segments for ref in segment.refs]
        names = [[str(ref) for ref in segment.refs] for segment in segments]
        inline: Any = {**content, "xxh3": [segment.text() for segment in segments]}
        text = canonical(inline)
        digest = blake3(canonical([names, blake3(text).hexdigest()])).hexdigest()
        if len(text) > INLINE:
            content_refs = self._store.put_buffers([text])
            refs = refs + content_refs
            inline = [str(ref) for ref in content_refs]
        body = {
            "format": FORMAT,
            "segments": names,
            "content": inline,
            "digest": digest,
            "bytes": sum(ref.size for ref in refs),
            # The same content twice in one state is uploaded once.
            "new_bytes": sum({ref.hash: ref.size for ref in refs if ref.new}.values()),
        }
        return body, segments

    def _settle(self, step: int, digest: str) -> Manifest:
        """The step that was committed first, if it holds the same; StepExists if it does not.

        Raises Damaged when it cannot be loaded.
        """
        found = self._store.manifest(KIND, self._name, step)
        problems = self._store.verify(KIND, self._name, step)
        if problems:
            raise errors.Damaged(problems[0])
        if found.body.get("digest") == digest:
            return found
        raise errors.StepExists(
            f"step {step} of {self._name!r} in the store at {self._store.url} was committed "
            "before, with another state; the committed one is kept. Save a later step, or use "
            "another name"
        )
