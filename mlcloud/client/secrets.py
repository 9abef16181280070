"""Secrets of a session on the notebook's side: what is declared, and values that are kept here.

    secrets=["HF_TOKEN"]                      the notebook's environment, then its keyring
    secrets={"HF_TOKEN": "keyring:hf/me"}     what each is called there, and where it is kept

`env:` and `keyring:` are read here and go to the gateway's memory over the authenticated
connection; `aws:`, `gcp:`, `azure:` and `kubernetes:` are read by the gateway, and their values are
never on this machine. A value is never in a message, a repr or an error of ours.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping

from mlcloud.client.connection import Connection
from mlcloud.cluster.specification.values import Source
from mlcloud.errors import MLCloudError, SecretMissing, UsageError
from mlcloud.models import SecretInfo
from mlcloud.values.reducers import Classes
from mlcloud.values.secrets import SHORTEST, Secrets

SERVICE = "mlcloud"  # in the keyring, for a name without a source
_OURS = ("env", "keyring")

Found = tuple[dict[str, str], dict[str, str]]  # values, and why others were not found
Declared = Iterable[str] | Mapping[str, str]  # a text is one name


def declared(given: Declared) -> dict[str, str]:
    """Names, and where each is kept (empty: this notebook). Raises `UsageError`, which repeats no
    source: it may be the value itself."""
    if isinstance(given, str):
        given = [given]
    entries = dict(given) if isinstance(given, Mapping) else dict.fromkeys(given, "")
    for name, source in entries.items():
        if not isinstance(name, str) or not name.isidentifier() or not name.isascii():
            raise UsageError("a secret's name is an environment variable's, such as HF_TOKEN")
        if source:
            try:
                Source.parse(source)
            except ValueError as error:
                raise UsageError(f"secret {name}: {error}") from None
    return entries


def read_words(words: Iterable[str]) -> dict[str, str]:
    """`HF_TOKEN` and `HF_TOKEN=keyring:hf/me`, as `--secret` takes them."""
    pairs = (word.partition("=") for word in words)
    return declared({name: source for name, _, source in pairs})


def look_up(name: str, source: str) -> tuple[str | None, str]:
    """The value, if it is kept here and found; else None, and why not."""
    if not source:
        if os.environ.get(name):
            return os.environ[name], ""
        value, why = _from_keyring(SERVICE, name)
        return value, f"{name} is not in this notebook's environment, and {why}"
    parsed = Source.parse(source)
    if parsed.kept == "env":
        variable = parsed.reference
        return os.environ.get(variable) or None, f"{variable} is not in this notebook's environment"
    if parsed.kept == "keyring":
        service, _, user = parsed.reference.partition("/")
        return _from_keyring(service, user)
    return None, "it is read by the gateway"


def _from_keyring(service: str, user: str) -> tuple[str | None, str]:
    try:
        import keyring
    except ImportError:
        return None, "the keyring was not asked: keyring is not installed (pip install keyring)"
    try:
        value = keyring.get_password(service, user)
    except Exception as error:  # of its backends; a locked one says so
        return None, f"the keyring could not be read ({type(error).__name__}: {error})"
    return value or None, f"the keyring has nothing for {user!r} of {service!r}"


def is_ours(source: str) -> bool:
    """Whether the value is kept on the notebook's side."""
    return not source or Source.parse(source).kept in _OURS


class SessionSecrets:
    """What this notebook gave to one session, or was asked for."""

    def __init__(self, connection: Connection, name: str, classes: Classes) -> None:
        self._connection = connection
        self._classes = classes
        self._path = f"/v1/sessions/{name}/secrets"
        self._name = name
        self._given = Secrets()
        self._declared: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<secrets of {self._name}: {', '.join(sorted(self._declared)) or 'none'}>"

    def refuse_in(self, code: str) -> None:
        """Raises `UsageError` where a cell's text has a value that this notebook gave: cells are
        kept, to be run again after a move."""
        name = self._given.held_by(code.encode("utf-8", "replace"))
        if name is not None:
            raise UsageError(
                f"the cell's text has the value of the secret {name} in it, and cells are kept in "
                f"the store: write os.environ[{name!r}]"
            )

    def infos(self) -> list[SecretInfo]:
        return [SecretInfo.model_validate(each) for each in self._connection.get(self._path)]

    def knows(self, names: Iterable[str]) -> bool:
        """Whether this notebook has given all of these already."""
        return self._declared.keys() >= set(names)

    def give(self, sources: Mapping[str, str], found: Found | None = None) -> None:
        """Declare them, and send those values that are kept here.

        Raises `SecretMissing` for one that is neither here nor at the gateway.
        """
        values, reasons = found or find(sources)
        self._keep(values)
        body = {"sources": dict(sources), "values": values}
        answer = self._connection.put(self._path, body)
        self._declared.update(sources)
        held = {each["name"] for each in answer if each["held"]}
        missing = [why for name, why in reasons.items() if name not in held]
        if missing:
            raise SecretMissing(missing_text(missing))

    def asked(self, sources: Mapping[str, str]) -> None:
        """The gateway has them no more: send what is here. Raises nothing: others may have them."""
        values, _ = find(sources)
        if not values:
            return
        self._keep(values)
        try:
            self._connection.put(self._path, {"values": values})
        except MLCloudError as error:
            warnings.warn(
                f"secrets of session {self._name} could not be given again: {error}", stacklevel=2
            )

    def _keep(self, values: Mapping[str, str]) -> None:
        self._given = Secrets({**self._given.values, **values})
        self._classes.secrets = self._given  # no variable that holds one is sent as such
        short = [name for name in values if name in self._given.unmasked]
        if short:
            warnings.warn(
                f"{', '.join(sorted(short))}: shorter than {SHORTEST} characters, so it is not "
                "masked where a cell prints it, and can be saved with the session's state",
                stacklevel=2,
            )


def require(connection: Connection, session: str, found: Found) -> None:
    """Raises `SecretMissing` where a value is neither here nor at the gateway."""
    _, reasons = found
    if not reasons:
        return
    answer = connection.request("GET", f"/v1/sessions/{session}/secrets", missing_ok=True)
    known = [] if answer.is_error else answer.json()
    held = {each["name"] for each in known if each["held"]}
    missing = [why for name, why in reasons.items() if name not in held]
    if missing:
        raise SecretMissing(missing_text(missing))


def find(sources: Mapping[str, str]) -> Found:
    """The values that are kept here; and of those that should be, why they are not."""
    values: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for name, source in sources.items():
        if is_ours(source):
            value, why = look_up(name, source)
            if value is None:
                reasons[name] = why
            else:
                values[name] = value
    return values, reasons


def missing_text(reasons: Iterable[str]) -> str:
    """One line that says what to do."""
    return (
        f"{'; '.join(reasons)}. Set it in os.environ or in the keyring, or say where it is kept: "
        'secrets={"NAME": "keyring:SERVICE/USER"} (or env:, aws:, gcp:, azure:, kubernetes:)'
    )
