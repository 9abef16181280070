"""What is said of two sides' versions: nothing, a warning, or a refusal before anything is spent.

    basics(here, there)            at connect: Python, mlcloud, IPython, cloudpickle
    package(name, here, there)     when objects of a package first cross the wire
    table(here, there, packages)   both, for `%mlcloud env`

What counts, and why:

- **Python's minor version**: functions travel as bytecode, which differs between them.
- **A package's major version**: its objects are pickled by names of its insides (numpy 1 and 2,
  pandas 2 and 3). Projects that have come past 10 count by the calendar or the quarter (attrs,
  fsspec, pyarrow), so there a major is only worth a warning, and so is the minor of a 0.x.
- **A package that is missing there**: its objects cannot be loaded at all.
- Patches and local labels (`2.13.0+cpu`, `2.13.0+cu130`) count for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from packaging.version import InvalidVersion, Version

from mlcloud.environment.facts import Facts

CALENDAR = 10  # majors from here on are no promise of a break
BASICS = ("cloudpickle", "ipython")


class Verdict(str, Enum):
    """How much a difference matters."""

    SAME = "same"
    FINE = "fine"
    UNKNOWN = "not known yet"
    MAY_MATTER = "may matter"
    MATTERS = "matters"
    MISSING = "missing there"

    @property
    def blocks(self) -> bool:
        return self in (Verdict.MATTERS, Verdict.MISSING)


@dataclass(frozen=True)
class Row:
    """One line of the comparison."""

    package: str
    here: str
    there: str
    verdict: Verdict
    why: str = ""


def basics(here: Facts, there: Facts) -> list[Row]:
    """What both sides must agree on whatever is shipped."""
    rows = [_python(here, there), _mlcloud(here, there)]
    for name in BASICS:
        ours, theirs = here.packages.get(name, ""), there.packages.get(name, "")
        if not ours:
            continue
        found = versions(name, ours, theirs)
        if name == "ipython" and found.verdict is Verdict.MATTERS:
            # No object of IPython's travels: at worst a magic differs.
            found = Row(name, ours, theirs, Verdict.MAY_MATTER, "magics may differ")
        rows.append(found)
    return rows


def _python(here: Facts, there: Facts) -> Row:
    ours, theirs = here.python, there.python
    if here.implementation != there.implementation:
        ours, theirs = f"{here.implementation} {ours}", f"{there.implementation} {theirs}"
    if here.implementation != there.implementation or here.minor != there.minor:
        why = "functions and classes travel as bytecode, which differs between these two"
        return Row("Python", ours, theirs, Verdict.MATTERS, why)
    return Row("Python", ours, theirs, Verdict.SAME if ours == theirs else Verdict.FINE)


def _mlcloud(here: Facts, there: Facts) -> Row:
    if here.api != there.api:
        ours, theirs = f"{here.mlcloud} (API {here.api})", f"{there.mlcloud} (API {there.api})"
        return Row("mlcloud", ours, theirs, Verdict.MATTERS, "they speak different protocols")
    found = versions("mlcloud", here.mlcloud, there.mlcloud)
    if found.verdict is Verdict.MATTERS:
        return Row("mlcloud", found.here, found.there, Verdict.MAY_MATTER, found.why)
    return found


def package(name: str, here: Facts, there: Facts, module: str = "") -> Row:
    """A package whose objects go there. `module` is the top-level module it was met by."""
    ours = here.packages.get(name, "")
    if name not in there.packages:
        # Another package may bring the same module: opencv-python, opencv-python-headless.
        if there.importable.get(module):
            return Row(name, ours, "", Verdict.FINE, f"{module} is there, by another package")
        if module and module not in there.importable:
            return Row(name, ours, "", Verdict.UNKNOWN)
        return Row(name, ours, "", Verdict.MISSING, "its objects cannot be loaded there")
    return versions(name, ours, there.packages[name])


def versions(name: str, ours: str, theirs: str) -> Row:
    """Two versions of one package."""
    if ours == theirs:
        return Row(name, ours, theirs, Verdict.SAME)
    try:
        mine, other = Version(ours), Version(theirs)
    except InvalidVersion:
        known = bool(ours and theirs)
        return Row(name, ours, theirs, Verdict.MAY_MATTER if known else Verdict.UNKNOWN)
    if mine.public == other.public:
        return Row(name, ours, theirs, Verdict.SAME)
    if mine.epoch != other.epoch or mine.major != other.major:
        if min(mine.major, other.major) >= CALENDAR:
            return Row(name, ours, theirs, Verdict.MAY_MATTER, "another release")
        why = "another major version: objects may not load, or load as something else"
        return Row(name, ours, theirs, Verdict.MATTERS, why)
    if mine.minor != other.minor:
        return Row(name, ours, theirs, Verdict.MAY_MATTER, "another minor version")
    return Row(name, ours, theirs, Verdict.FINE)


def table(here: Facts, there: Facts, packages: Iterable[str]) -> list[Row]:
    """The basics, then these packages, what matters most first."""
    order = list(Verdict)
    rows = [package(name, here, there) for name in packages if name not in (*BASICS, "mlcloud")]
    rows.sort(key=lambda row: (-order.index(row.verdict), row.package))
    return [*basics(here, there), *rows]
