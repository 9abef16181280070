"""Whether a request is one that the cloud's published schema has: no other fields, types or words.

`GOOGLE` is Google's discovery document of Compute Engine, `AZURE` the models of Azure's SDKs in the
same form (`azure_models`), `RAY` KubeRay's CRD with Kubernetes' models (`ray_schema`); where they
come from stands in them. What the cloud marks as read only is not ours to send either.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

Schemas = dict[str, dict[str, Any]]


def _published(name: str) -> Schemas:
    document = json.loads((Path(__file__).parent / "schemas" / name).read_text())
    return dict(document["schemas"])


GOOGLE = _published("compute.v1.json")
AZURE = _published("azure.json")
RAY = _published("raycluster.json")
_TYPES = {"string": str, "boolean": bool, "object": dict, "array": list}


def faults(value: Any, name: str, schemas: Schemas = GOOGLE) -> list[str]:
    """What is wrong with `value` as the schema `name`, each with its path."""
    return _faults(value, {"$ref": name}, name, schemas)


def _faults(value: Any, schema: dict[str, Any], where: str, schemas: Schemas) -> list[str]:
    if "$ref" in schema:
        return _faults(value, schemas[schema["$ref"]], where, schemas)
    if schema.get("readOnly"):
        return [f"{where}: is the cloud's to say"]
    kind = schema["type"]
    if kind in ("integer", "number"):
        right = isinstance(value, int if kind == "integer" else (int, float))
        return [] if right and not isinstance(value, bool) else [f"{where}: no {kind}: {value!r}"]
    if kind == "int-or-string":
        right = isinstance(value, (int, str)) and not isinstance(value, bool)
        return [] if right else [f"{where}: neither integer nor string: {value!r}"]
    if not isinstance(value, _TYPES[kind]):
        return [f"{where}: no {kind}: {value!r}"]
    if kind == "string":
        return _string(value, schema, where)
    if kind == "boolean":
        return []
    found = [f"{where}: no {key}" for key in schema.get("required", []) if key not in value]
    if kind == "array":
        for index, each in enumerate(value):
            found += _faults(each, schema["items"], f"{where}[{index}]", schemas)
        return found
    known, other = schema.get("properties", {}), schema.get("additionalProperties")
    for key, each in value.items():
        inner = known.get(key, other)
        if inner is None:
            found.append(f"{where}.{key}: no such field")
        else:
            found += _faults(each, inner, f"{where}.{key}", schemas)
    return found


def _string(value: str, schema: dict[str, Any], where: str) -> list[str]:
    if "enum" in schema and value not in schema["enum"]:
        return [f"{where}: {value!r} is none of {schema['enum']}"]
    if schema.get("format") in ("int64", "uint64") and not re.fullmatch(r"-?\d+", value):
        return [f"{where}: no number in words: {value!r}"]
    if "pattern" in schema and not re.fullmatch(schema["pattern"], value):
        return [f"{where}: {value!r} is not {schema['pattern']}"]
    return []
