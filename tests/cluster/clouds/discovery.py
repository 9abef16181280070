"""Whether a request is one that Google's published schema has: no other fields, no other types.

The schema is Google's discovery document (`schemas/compute.v1.json`, its source stands in it). A
field that Google marks as read only, or whose description begins with [Output Only], is not ours to
send either; the first kind is checked.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

DOCUMENT = json.loads((Path(__file__).parent / "schemas" / "compute.v1.json").read_text())
_TYPES = {"string": str, "boolean": bool, "object": dict, "array": list}


def faults(value: Any, schema: str | dict[str, Any], where: str = "") -> list[str]:
    """What is wrong with `value` as a `schema`, each with its path."""
    if isinstance(schema, str):
        where, schema = where or schema, DOCUMENT["schemas"][schema]
    assert isinstance(schema, dict)
    if "$ref" in schema:
        return faults(value, DOCUMENT["schemas"][schema["$ref"]], where)
    if schema.get("readOnly"):
        return [f"{where}: is Google's to say"]
    kind = schema["type"]
    if kind in ("integer", "number"):
        right = isinstance(value, int if kind == "integer" else (int, float))
        return [] if right and not isinstance(value, bool) else [f"{where}: no {kind}: {value!r}"]
    if not isinstance(value, _TYPES[kind]):
        return [f"{where}: no {kind}: {value!r}"]
    if kind == "string":
        return _string(value, schema, where)
    if kind == "array":
        return [f for i, v in enumerate(value) for f in faults(v, schema["items"], f"{where}[{i}]")]
    if kind == "boolean":
        return []
    known, other = schema.get("properties", {}), schema.get("additionalProperties")
    found = []
    for key, each in value.items():
        inner = known.get(key, other)
        if inner is None:
            found.append(f"{where}.{key}: no such field")
        else:
            found += faults(each, inner, f"{where}.{key}")
    return found


def _string(value: str, schema: dict[str, Any], where: str) -> list[str]:
    if "enum" in schema and value not in schema["enum"]:
        return [f"{where}: {value!r} is none of {schema['enum']}"]
    if schema.get("format") in ("int64", "uint64") and not re.fullmatch(r"-?\d+", value):
        return [f"{where}: no number in words: {value!r}"]
    if "pattern" in schema and not re.fullmatch(schema["pattern"], value):
        return [f"{where}: {value!r} is not {schema['pattern']}"]
    return []
