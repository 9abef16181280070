"""What is wrong with a specification: every problem at once, a line each, with its field's path.

    cluster.yaml: 3 problems
      line 7   nodes[1].gpu: cannot read 'A10G:x' …
      line 9   nodes[1].max: 2 is below min, which is 4: raise max or lower min
      line 12  reigons: no such field; did you mean 'regions'?

pydantic finds most of them; here its errors become sentences. A validator of ours that finds
several things in one field raises `Several`. The values themselves are repeated only where the
sentence needs them, and never those of secrets.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from mlcloud.errors import SpecificationError
from mlcloud.units import suggest

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, where, and what to do about it."""

    path: Path
    text: str
    line: int | None = None

    @property
    def field(self) -> str:
        """`nodes[1].gpu`."""
        return written(self.path)

    def __str__(self) -> str:
        return f"{self.field}: {self.text}" if self.path else self.text


class Several(ValueError):
    """More than one problem in one field: `(path below it, text)` each."""

    def __init__(self, problems: Iterable[tuple[Path, str]]) -> None:
        self.problems = list(problems)
        super().__init__("; ".join(text for _, text in self.problems))


def written(path: Path) -> str:
    """A path as the user would write it: `nodes[1].gpu`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


def refusal(
    problems: Iterable[Problem], source: str = "", lines: Mapping[Path, int] | None = None
) -> SpecificationError:
    """The error that tells them all. `lines` says where in `source` each path is."""
    found = [
        Problem(each.path, each.text, _line(each.path, lines or {}))
        for each in dict.fromkeys(problems)
    ]
    found.sort(key=lambda each: each.line or 0)
    error = SpecificationError(_told(found, source or "the cluster's specification"))
    error.problems = found
    return error


def _told(found: list[Problem], place: str) -> str:
    if len(found) == 1:
        line = f", line {found[0].line}" if found[0].line else ""
        return f"{place}{line}: {found[0]}"
    width = max((len(f"line {each.line}") for each in found if each.line), default=0)
    rows = [
        f"  {(f'line {each.line}' if each.line else '').ljust(width)}{'  ' if width else ''}{each}"
        for each in found
    ]
    return "\n".join([f"{place}: {len(found)} problems", *rows])


def _line(path: Path, lines: Mapping[Path, int]) -> int | None:
    """The line of the path, or of the nearest thing around it."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path)


# --- pydantic's errors ----------------------------------------------------------------------------


def translated(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """The problems that pydantic found in what was to be a `model`."""
    found = []
    for each in error.errors(include_url=False):
        path: Path = tuple(part for part in each["loc"] if part != "[key]")
        cause = (each.get("ctx") or {}).get("error")
        if isinstance(cause, Several):
            found += [Problem((*path, *below), text) for below, text in cause.problems]
        else:
            found.append(Problem(path, _sentence(dict(each), path, model, cause)))
    return found


def _sentence(each: dict[str, Any], path: Path, model: type[BaseModel], cause: object) -> str:
    kind, context, given = each["type"], each.get("ctx") or {}, each.get("input")
    if cause is not None:
        return str(cause)
    if kind == "extra_forbidden":
        around = _model_at(model, path[:-1])
        names = list(around.model_fields) if around else []
        name = str(path[-1])
        return f"no such field{suggest(name, names) or '; there are ' + ', '.join(names)}"
    if kind == "missing":
        around = _model_at(model, path[:-1])
        field = around.model_fields.get(str(path[-1])) if around else None
        return f"is missing: {field.description if field and field.description else 'set it'}"
    if kind == "literal_error":
        known = [word.strip("' ") for word in context["expected"].replace(" or ", ", ").split(",")]
        return f"{given!r} is not one of {', '.join(known)}{suggest(str(given), known)}"
    if kind == "string_type":
        return f"text is expected{_instead(given)}"
    if kind in ("int_type", "int_parsing", "int_from_float"):
        return f"a whole number is expected, not {_short(given)}"
    if kind in ("float_type", "float_parsing", "finite_number"):
        return f"a number is expected, not {_short(given)}"
    if kind == "greater_than_equal":
        return f"{_short(given)} is too little: at least {context['ge']}"
    if kind == "greater_than":
        return f"{_short(given)} is too little: above {context['gt']}"
    if kind == "less_than_equal":
        return f"{_short(given)} is too much: at most {context['le']}"
    if kind in ("list_type", "tuple_type"):
        return f"a list is expected, not {_short(given)}: write it in [ ], or with a `-` a line"
    if kind in ("dict_type", "model_type", "model_attributes_type", "mapping_type"):
        return f"fields with values are expected, not {_short(given)}"
    return str(each["msg"])


def _instead(given: object) -> str:
    if isinstance(given, bool):
        return f": YAML reads this as {'yes' if given else 'no'}; put it in quotes"
    if isinstance(given, (int, float)):
        return f", and this is the number {given}: put it in quotes"
    return f", not {_short(given)}"


def _short(given: object) -> str:
    if isinstance(given, dict):
        return "a mapping"
    if isinstance(given, (list, tuple)):
        return "a list"
    return "nothing" if given is None else repr(given)[:60]


def _model_at(model: type[BaseModel], path: Path) -> type[BaseModel] | None:
    """The model whose fields are below `path`."""
    at: Any = model
    for part in path:
        at = _inner(at)
        if isinstance(at, type) and issubclass(at, BaseModel):
            field = at.model_fields.get(str(part))
            if field is None:
                return None
            at = field.annotation
        else:  # of a list or a mapping, each item
            at = next((a for a in reversed(get_args(at)) if a is not Ellipsis), None)
    at = _inner(at)
    return at if isinstance(at, type) and issubclass(at, BaseModel) else None


def _inner(annotation: Any) -> Any:
    """What is annotated, and of `X | None` the X."""
    while True:
        origin = get_origin(annotation)
        if origin is Annotated:
            annotation = get_args(annotation)[0]
        elif origin in (Union, types.UnionType):
            annotation = next(a for a in get_args(annotation) if a is not type(None))
        else:
            return annotation
