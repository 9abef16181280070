"""An `Environment`: what a session's packages are, as plain data that can be kept in a file.

    packages        exact versions, each from an index, a URL, or a wheel of our own; together they
                    are complete, so they are installed as they are, nothing resolved
    requirements    what was asked for by name (`polars==1.9`): the node resolves what they need

Wheels are named by the blake3 of their bytes and lie in the wheel cache under `MLCLOUD_HOME`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from blake3 import blake3

from mlcloud.environment.cache import wheel_folder
from mlcloud.errors import NotFound, UsageError

# The cluster's own: a node runs the gateway's versions of these, whatever is asked for.
CLUSTERS_OWN = frozenset({"mlcloud", "ray"})
FORMAT = 1


def without_hashes(line: str) -> str:
    """A line of a lock as a requirement, without pip's options for it."""
    return line.partition(" --hash")[0].strip()


@dataclass(frozen=True)
class Package:
    """One package. `source` is `index`, `url` (git, archives), `local`, `editable` or `module`.

    `requirement` is what pip is told; "" for a package that travels as `wheel`, a file's name, its
    content named by `digest` (blake3). `where` is where it came from, for people.
    """

    name: str
    version: str
    source: str = "index"
    requirement: str = ""
    wheel: str = ""
    digest: str = ""
    where: str = ""

    @property
    def path(self) -> Path | None:
        """The wheel in this computer's cache."""
        return wheel_folder() / self.digest / self.wheel if self.wheel else None


@dataclass(frozen=True)
class Difference:
    """A package that two environments do not share; "" where one has none."""

    name: str
    here: str
    there: str


@dataclass(frozen=True)
class Environment:
    """Made by `capture()` and `of()`; see the module. Two with the same content are equal."""

    python: str
    platform: str
    packages: tuple[Package, ...] = ()
    requirements: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> str:
        """Names the content: blake3 of what a node needs to know."""
        parts = [
            self.python,
            *(f"{each.requirement or each.wheel} {each.digest}" for each in self.packages),
            *self.requirements,
        ]
        return blake3("\n".join(parts).encode()).hexdigest()

    @property
    def wheels(self) -> tuple[Path, ...]:
        """The wheels that travel with it. Raises `NotFound` if the cache has lost one."""
        found = []
        for each in self.packages:
            if each.path is not None:
                if not each.path.exists():
                    raise NotFound(
                        f"the wheel of {each.name} {each.version} is not in {wheel_folder()} any "
                        "more: capture the environment again"
                    )
                found.append(each.path)
        return tuple(found)

    def version(self, name: str) -> str | None:
        """The version of a package, None if it is not among `packages`."""
        return next((each.version for each in self.packages if each.name == name), None)

    def diff(self, other: Environment) -> tuple[Difference, ...]:
        """What differs, by name: versions, and wheels of one version with other content."""
        mine = {each.name: each for each in self.packages}
        theirs = {each.name: each for each in other.packages}
        found = []
        if self.python != other.python:
            found.append(Difference("Python", self.python, other.python))
        for name in sorted(mine.keys() | theirs.keys()):
            a, b = mine.get(name), theirs.get(name)
            if a != b and _shown(a, b) != _shown(b, a):
                found.append(Difference(name, _shown(a, b), _shown(b, a)))
        for line in sorted(set(self.requirements) ^ set(other.requirements)):
            here = line if line in self.requirements else ""
            found.append(Difference(line, here, "" if here else line))
        return tuple(found)

    # --- as text ----------------------------------------------------------------------------------

    def to_json(self) -> str:
        """A lock to keep in a file. The wheels are named in it, not contained."""
        body = {
            "mlcloud-environment": FORMAT,
            "python": self.python,
            "platform": self.platform,
            "packages": [
                {key: value for key, value in asdict(each).items() if value}
                for each in self.packages
            ],
            "requirements": list(self.requirements),
        }
        return json.dumps(body, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Environment:
        """What `to_json` wrote. Raises `UsageError` for anything else."""
        try:
            body = json.loads(text)
            if body["mlcloud-environment"] != FORMAT:
                raise UsageError(f"this lock has the format {body['mlcloud-environment']!r}")
            packages = tuple(Package(**each) for each in body["packages"])
            return cls(body["python"], body["platform"], packages, tuple(body["requirements"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"this is no environment that `to_json` wrote ({type(error).__name__}: {error})"
            ) from None

    @property
    def summary(self) -> str:
        """`polars==1.9, 235 packages, mypackage 0.1 as a wheel`."""
        wheels = [f"{each.name} {each.version}" for each in self.packages if each.wheel]
        pinned = len(self.packages) - len(wheels)
        made = {f"{each.name}=={each.version}" for each in self.packages if each.wheel}
        parts = [*(line for line in self.requirements if line not in made)]
        if pinned:
            parts.append(f"{pinned} package{'' if pinned == 1 else 's'}")
        if wheels:
            kind = "as a wheel" if len(wheels) == 1 else "as wheels"
            parts.append(f"{', '.join(wheels)} {kind}")
        return ", ".join(parts) or "nothing"

    def _rows(self) -> list[tuple[str, str, str]]:
        rows = [(each.name, each.version, each.where or each.source) for each in self.packages]
        return rows + [(line, "", "asked for by name") for line in self.requirements]

    def __repr__(self) -> str:
        head = f"<environment of Python {self.python} on {self.platform}: {self.summary}>"
        return "\n".join([head, *text_table(("package", "version", "from"), self._rows())])

    def _repr_html_(self) -> str:
        head = f"Python {self.python} on {self.platform}: {self.summary}"
        return f"<div>{escape(head)}</div>" + html_table(
            ("package", "version", "from"), self._rows()
        )


def _shown(package: Package | None, other: Package | None) -> str:
    """A version; with its content, where the version alone would not tell the two apart."""
    if package is None:
        return ""
    if other is not None and package.version == other.version:
        what = package.digest[:12] or package.requirement.partition("@")[2].strip()
        return f"{package.version} ({what})" if what else package.version
    return package.version


def text_table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Lines of columns, each as wide as it must be."""
    lines = [heads, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def html_table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    def line(tag: str, cells: tuple[Any, ...]) -> str:
        style = "style='text-align:left'"
        return "".join(f"<{tag} {style}>{escape(str(cell))}</{tag}>" for cell in cells)

    body = "".join(f"<tr>{line('td', cells)}</tr>" for cells in rows)
    return f"<table><thead><tr>{line('th', heads)}</tr></thead><tbody>{body}</tbody></table>"
