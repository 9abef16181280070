"""`cluster.yaml`: read with the line of each field, written without what is default anyway.

YAML has traps that a plain load hides: of two equal keys the last wins, and `no`, `1e3` or `0123`
are not text. The first is refused here; the others are, by the fields, with the line.
"""

from __future__ import annotations

from pathlib import Path as File
from typing import Any

from mlcloud.cluster.specification.model import Specification, specify
from mlcloud.cluster.specification.parts import (
    SSH,
    Head,
    Idle,
    Machine,
    Mount,
    NodeGroup,
    Packages,
    Part,
)
from mlcloud.cluster.specification.problems import Path, Problem, refusal
from mlcloud.errors import SpecificationError, UsageError
from mlcloud.units import suggest

DEFAULT = "cluster.yaml"
_LARGEST = 1_000_000  # characters
_MOST = 20_000  # fields, which a few anchors within anchors are beyond


def load(path: str | File) -> Specification:
    """The specification in a file. Raises `SpecificationError`, `UsageError` for no such file."""
    return from_yaml(_text(path), source=str(path))


def from_yaml(text: str, *, source: str = "") -> Specification:
    """The specification in a text. Raises `SpecificationError`, with lines."""
    fields, lines = _read(text, source)
    return specify(source, lines, **fields)


def lines_of(path: str | File) -> dict[Path, int]:
    """The line of each field in a file, for problems that are found later."""
    return _read(_text(path), str(path))[1]


def lines_in(text: str, *, source: str = "") -> dict[Path, int]:
    """The line of each field in a text."""
    return _read(text, source)[1]


def _text(path: str | File) -> str:
    file = File(path).expanduser()
    try:
        with open(file, encoding="utf-8") as opened:
            text = opened.read(_LARGEST + 1)
    except (FileNotFoundError, NotADirectoryError):
        near = [each.name for each in file.parent.glob("*.y*ml")] if file.parent.is_dir() else []
        hint = suggest(file.name, near)
        raise UsageError(f"there is no file {str(path)!r}{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{str(path)!r} cannot be read: {error}") from None
    if len(text) > _LARGEST:
        raise UsageError(f"{str(path)!r} is too long for a cluster's specification")
    return text


def _read(text: str, source: str) -> tuple[dict[str, Any], dict[Path, int]]:
    """The fields of a text, and the line of each."""
    import yaml

    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
    except yaml.YAMLError as error:
        raise _not_yaml(error, source) from None
    if not isinstance(root, yaml.MappingNode):
        said = "fields with values are expected, such as `name: gpus`"
        raise refusal([Problem((), said)], source)
    lines: dict[Path, int] = {}
    problems: list[Problem] = []
    _walk(root, (), lines, problems, set())
    if problems:
        raise refusal(problems, source, lines)
    try:
        fields = loader.construct_document(root)
    except (yaml.YAMLError, ValueError) as error:  # a date that is none, an unknown tag
        raise _not_yaml(error, source) from None
    return fields, lines


def to_yaml(specification: Specification) -> str:
    """As text that `from_yaml` reads as the same. Without what is default, in the fields' order."""
    return dump(specification.model_dump(mode="json", exclude_defaults=True))


def dump(value: Any) -> str:
    """YAML in the order of `value`, everything written out where it stands."""
    import yaml

    dumper = type("Dumper", (yaml.SafeDumper,), {"ignore_aliases": lambda *_: True})
    text: str = yaml.dump(value, Dumper=dumper, sort_keys=False, allow_unicode=True, width=100)
    return text


def schema() -> dict[str, Any]:
    """The JSON schema of `cluster.yaml`, for editors that complete and check while one types."""
    found = Specification.model_json_schema()
    for part in (Head, Idle, Machine, Mount, NodeGroup, Packages, SSH):
        _write_defaults(found["$defs"][part.__name__]["properties"], part)
    _write_defaults(found["properties"], Specification)
    found["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    found["title"] = "mlcloud cluster"
    return found


def _write_defaults(properties: dict[str, Any], part: type[Part]) -> None:
    """Defaults as one would write them, `100GB`; those of a whole part are its fields' own."""
    written = part.model_construct().model_dump(mode="json")
    for name, shown in properties.items():
        field = part.model_fields[name]
        if field.default_factory is None and not field.is_required():
            shown["default"] = written[name]
        else:
            shown.pop("default", None)


def _not_yaml(error: Exception, source: str) -> SpecificationError:
    mark = getattr(error, "problem_mark", None)
    lines: dict[Path, int] = {} if mark is None else {(): mark.line + 1}
    said = getattr(error, "problem", None) or str(error)
    return refusal([Problem((), f"this is not YAML: {said}")], source, lines)


def _walk(
    node: Any, path: Path, lines: dict[Path, int], problems: list[Problem], above: set[int]
) -> None:
    """Notes the line of each field, and keys that are there twice or are not text."""
    import yaml

    lines.setdefault(path, node.start_mark.line + 1)
    if len(lines) > _MOST:
        raise UsageError(f"more than {_MOST:,} fields are no cluster's specification")
    if id(node) in above:
        problems.append(Problem(path, "this anchor holds itself"))
        return
    above = above | {id(node)}
    if isinstance(node, yaml.SequenceNode):
        for index, each in enumerate(node.value):
            _walk(each, (*path, index), lines, problems, above)
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else ""
            if key.tag == "tag:yaml.org,2002:merge":  # `<<: *common`
                _walk(value, path, lines, problems, above)
                continue
            below = (*path, name)
            lines[below] = key.start_mark.line + 1
            if key.tag != "tag:yaml.org,2002:str":
                problems.append(Problem(below, "a field's name is text: put it in quotes"))
            elif name in seen:
                problems.append(Problem(below, "is there twice: keep one of them"))
            seen.add(name)
            _walk(value, below, lines, problems, above)
