"""How the store's parts reach its place: threads, and the store's own errors for what fails there.

Access ─► Chunks ─► Store        each adds what it is named for
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NoReturn, TypeVar

from mlcloud import errors
from mlcloud.store.backends import open_backend
from mlcloud.store.failures import causes, told
from mlcloud.store.keys import KeySource, load_keys
from mlcloud.store.options import Options, OptionsSource

T = TypeVar("T")
R = TypeVar("R")


class Working:
    """How many operations of this process's stores go on now: what they do is not the user's."""

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def now(self) -> Iterator[None]:
        with self._lock:
            self.count += 1
        try:
            yield
        finally:
            with self._lock:
                self.count -= 1


WORKING = Working()


class Access:
    """A URL, the backend that serves it, and the key that seals what goes there."""

    def __init__(self, url: str, key: KeySource | None, options: OptionsSource | None) -> None:
        self._keys = None if key is None else load_keys(key)
        self._options = None if options is None else Options(options)
        self._backend, self.url = open_backend(url, self._options)
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def __reduce__(self) -> NoReturn:
        raise errors.NotPicklable(
            f"a Store is not pickled, since it may hold a key: pass its URL ({self.url}) and open "
            "it where it is used"
        )

    @property
    def folder(self) -> str:
        """Where it lies on this machine; empty for one that is elsewhere."""
        return str(getattr(self._backend, "root", ""))

    @property
    def uploads(self) -> int:
        """How many chunks are best put at a time, by who puts many."""
        return self._backend.uploads

    @property
    def sealed(self) -> str:
        """The fingerprint of the key that what is written here takes to be read, or empty."""
        return "" if self._keys is None else self._keys.fingerprint

    @property
    def by_url(self) -> bool:
        """Whether its URL alone opens it: there is no key, and no options."""
        return self._keys is None and self._options is None

    @contextlib.contextmanager
    def _doing(self, verb: str) -> Iterator[None]:
        """Turn what filesystems and cloud clients raise into the store's errors."""
        try:
            with WORKING.now():
                yield
        except errors.MLCloudError:
            raise
        except Exception as error:
            hidden = self._options
            brief = f"{type(error).__name__}: {error}"
            made = told(verb, self.url, error, hidden.without_secrets(brief) if hidden else brief)
            # A cloud's client may put into its message what it was given.
            if hidden and any(hidden.hides(str(each)) for each in causes(error)):
                raise made from None
            raise made from error

    def each(
        self, call: Callable[[T], R], items: Iterable[T], *, width: int | None = None
    ) -> Iterator[R]:
        """`map` with a few threads and a bounded number of items in flight; results in order."""
        width = min(self._backend.parallel, width or self._backend.parallel)
        if width == 1:
            yield from map(call, items)
            return
        waiting: deque[Future[R]] = deque()
        pool = ThreadPoolExecutor(width, thread_name_prefix="mlcloud-store")
        try:
            for item in items:
                if len(waiting) > width:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(call, item))
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def join(url: str, *parts: str) -> str:
    """A store URL below another: `join("s3://b/x/", "y") == "s3://b/x/y"`. Parts may not climb."""
    for part in parts:
        for segment in part.strip("/").split("/"):
            if segment in {"", ".", ".."}:
                raise errors.UsageError(f"{part!r} is no place below {url!r}")
        url = url.rstrip("/") + "/" + part.strip("/") if url != "/" else "/" + part.strip("/")
    return url
