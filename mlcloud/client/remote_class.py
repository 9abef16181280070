"""`@mlcloud.remote` on a class: objects that live in a session, whose methods run there.

    model = Model("small")    ─► cell  _mlcloud_result_… = Model("small")     stays there: a handle
    model.fit(data)           ─► cell  _mlcloud_result_… = <the object>.fit(data)

The object is the session's, so it is in its snapshots: it survives a move, a park and a killed node
with the state that its last safe call left. When the handle is gone here, it goes there too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mlcloud.errors import UsageError

if TYPE_CHECKING:
    from mlcloud.client.functions import RemoteFunction
    from mlcloud.client.remote_value import RemoteValue
    from mlcloud.client.session import Session

T = TypeVar("T")

_OWN = ("_mlcloud_class", "_mlcloud_session", "_mlcloud_handle", "_mlcloud_options")


class RemoteClass(Generic[T]):
    """A class whose objects are made in a session. `local(…)` makes one here."""

    def __init__(self, kind: type[T], options: dict[str, Any]) -> None:
        from mlcloud.client.functions import JOBS

        if given := sorted(options.keys() & set(JOBS)):
            raise UsageError(
                f"@mlcloud.remote on a class: {given[0]} is for jobs; an object is in a session"
            )
        self._kind, self._options = kind, options
        self.__name__, self.__qualname__ = kind.__name__, kind.__qualname__
        self.__module__, self.__doc__ = kind.__module__, kind.__doc__

    @property
    def local(self) -> type[T]:
        """The class itself."""
        return self._kind

    def __repr__(self) -> str:
        return f"<remote class {self.__qualname__}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Make an object in the session. Raises what its `__init__` raised there."""
        from mlcloud.client.functions import RemoteFunction, call_text, in_session
        from mlcloud.client.session import main_namespace

        if in_session():
            return self._kind(*args, **kwargs)
        place: RemoteFunction[..., Any] = RemoteFunction(_nothing, self._options)
        session = place._session()
        code, temporary, result = call_text(self._kind, args, kwargs, main_namespace())
        handle = session.call(code, temporary, result, max_return=0, **_limits(self._options))
        return RemoteObject(self._kind, session, handle, self._options)

    def __reduce__(self) -> Any:
        options = {name: value for name, value in self._options.items() if name != "session"}
        return RemoteClass, (self._kind, options)


class RemoteObject:
    """An object in a session: what its class has is called, read and set there."""

    def __init__(
        self, kind: type, session: Session, handle: RemoteValue, options: dict[str, Any]
    ) -> None:
        for name, value in zip(_OWN, (kind, session, handle, options), strict=True):
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name.startswith(("_repr_", "_ipython_")) or name in _OWN:
            raise AttributeError(name)
        if callable(getattr(self._mlcloud_class, name, None)):

            def method(*args: Any, **kwargs: Any) -> Any:
                return _on(self, f".{name}", args, kwargs)

            method.__name__ = name
            return method
        return _on(self, f".__getattribute__({name!r})", None, {})

    def __setattr__(self, name: str, value: Any) -> None:
        _on(self, ".__setattr__", (name, value), {})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _on(self, "", args, kwargs)

    def __getitem__(self, key: Any) -> Any:
        return _on(self, ".__getitem__", (key,), {})

    def __setitem__(self, key: Any, value: Any) -> None:
        _on(self, ".__setitem__", (key, value), {})

    def __len__(self) -> int:
        return int(_on(self, ".__len__", (), {}))

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        name = self._mlcloud_class.__qualname__
        return f"<remote {name} in session {self._mlcloud_session.name}>"

    def __reduce__(self) -> Any:
        """In a cell or a call of its session it is the object itself."""
        return _itself, (self._mlcloud_handle,)


def _on(obj: RemoteObject, what: str, args: tuple[Any, ...] | None, kwargs: dict[str, Any]) -> Any:
    """Call something of the object where it is; `args` None: `what` is the whole expression."""
    from mlcloud.client.functions import call_text
    from mlcloud.client.session import main_namespace

    code, temporary, result = call_text(obj._mlcloud_handle, args or (), kwargs, main_namespace())
    head, _, tail = code.partition("(")
    code = f"{head}{what}" if args is None else f"{head}{what}({tail}"
    session = obj._mlcloud_session
    return session.call(code, temporary, result, **_limits(obj._mlcloud_options))


def _itself(handle: Any) -> Any:
    return handle


def _nothing() -> None:
    """Stands for a function, whose session is asked for."""


def _limits(options: dict[str, Any]) -> dict[str, Any]:
    from mlcloud.units import parse_duration

    timeout = options.get("timeout")
    return {
        "timeout": None if timeout is None else parse_duration(timeout).total_seconds(),
        "max_cost": options.get("max_cost"),
        "quiet": options.get("quiet", False),
    }
