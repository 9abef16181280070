"""Azure's models as a schema of the same form as Google's (`discovery`): from what the SDK ships.

    python -m tests.cluster.clouds.azure_models > tests/cluster/clouds/schemas/azure.json

Fields that Azure alone may say are kept without what is below them, and so are the parts of the
network's model that nobody sends with a network.
"""

from __future__ import annotations

import datetime
import enum
import json
import types
import typing
from typing import Any

ROOTS = {
    "compute": ["VirtualMachine"],
    "network": ["NetworkSecurityGroup", "VirtualNetwork", "NatGateway", "PublicIPAddress"],
}
#: A network refers to nearly everything; these are made by themselves.
_REFERENCES = {
    "NetworkInterface", "PrivateEndpoint", "RouteTable", "ServiceEndpointPolicy", "IPConfiguration",
    "VirtualNetworkPeering", "ApplicationSecurityGroup", "FlowLog", "PublicIPPrefix",
    "ApplicationGatewayIPConfiguration", "Delegation", "ServiceAssociationLink",
}  # fmt: skip
_SIMPLE = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    datetime.datetime: "string",
}


def build() -> dict[str, Any]:
    from azure.mgmt.compute import models as compute
    from azure.mgmt.network import models as network

    found: dict[str, Any] = {}
    for module, name in ((compute, "compute"), (network, "network")):
        for root in ROOTS[name]:
            _visit(getattr(module, root), module, name, found)
    return dict(sorted(found.items()))


def _visit(model: Any, module: Any, prefix: str, found: dict[str, Any]) -> str:
    key = f"{prefix}.{model.__name__}"
    if key in found:
        return key
    found[key] = schema = {"type": "object", "properties": {}}
    model({})  # fills in the fields
    names = {**vars(module), "_models": module, "datetime": datetime}
    hints = typing.get_type_hints(model, names)
    for attribute, field in model._attr_to_rest_field.items():
        if field._visibility == ["read"]:
            schema["properties"][field._rest_name] = {"readOnly": True}
        else:
            schema["properties"][field._rest_name] = _type(hints[attribute], module, prefix, found)
    return key


def _type(hint: Any, module: Any, prefix: str, found: dict[str, Any]) -> dict[str, Any]:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        kinds = [each for each in inner if each is not type(None)]
        words = [k for k in kinds if isinstance(k, type) and issubclass(k, enum.Enum)]
        if words and words[0].__name__ == "VirtualMachineSizeTypes":
            return {"type": "string"}  # the sizes of 2017; Azure takes today's
        if words:
            return {"type": "string", "enum": sorted(str(each.value) for each in words[0])}
        return _type(kinds[0], module, prefix, found)
    if origin is list:
        return {"type": "array", "items": _type(inner[0], module, prefix, found)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _type(inner[1], module, prefix, found)}
    if hint in _SIMPLE:
        return {"type": _SIMPLE[hint]}
    if hint.__name__ in _REFERENCES:
        return {"type": "object", "properties": {"id": {"type": "string"}}}
    return {"$ref": _visit(hint, module, prefix, found)}


if __name__ == "__main__":
    schemas = build()
    print(
        '{"source": "azure-mgmt-compute 39.0.0 and azure-mgmt-network 33.1.0 (MIT)", "schemas": {'
    )
    print(",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in schemas.items()))
    print("}}")
