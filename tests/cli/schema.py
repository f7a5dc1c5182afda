"""As much of JSON Schema as the schemas of docs/reference use, so that no library is needed to check outputs."""

from __future__ import annotations

from typing import Any

_TYPES = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None)}
ABOUT = {"$schema", "$id", "$defs", "title", "description"}
KNOWN = ABOUT | {"$ref", "type", "required", "properties", "items", "enum", "const", "anyOf", "oneOf", "minimum"}


def problems(value: Any, schema: dict[str, Any], root: dict[str, Any] | None = None, path: str = "$") -> list[str]:
    """What is wrong with `value`, members that the schema does not describe included: everything that is sent is documented."""
    root = root or schema
    if unknown := schema.keys() - KNOWN:
        return [f"{path}: the schema says {unknown}, which is not checked here"]
    if "$ref" in schema:
        return problems(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root, path)
    found = _scalar(value, schema, path)
    for how, fits in (("anyOf", lambda n: n >= 1), ("oneOf", lambda n: n == 1)):
        if how in schema and not fits(sum(not _shape(value, part, root, path) for part in schema[how])):
            found.append(f"{path}: {how} does not hold")
    if isinstance(value, dict) and "properties" in schema:
        found += [f"{path}: {key} is missing" for key in schema.get("required", ()) if key not in value]
        for key, member in value.items():
            about = schema["properties"].get(key)
            found += problems(member, about, root, f"{path}.{key}") if about else [f"{path}.{key}: not documented"]
    if isinstance(value, list) and "items" in schema:
        found += [line for n, member in enumerate(value) for line in problems(member, schema["items"], root, f"{path}[{n}]")]
    return found


def _shape(value: Any, part: dict[str, Any], root: dict[str, Any], path: str) -> list[str]:
    if part.keys() == {"required"}:
        return [key for key in part["required"] if key not in value]
    return problems(value, part, root, path)


def _scalar(value: Any, schema: dict[str, Any], path: str) -> list[str]:
    kind = schema.get("type")
    if kind and (not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return [f"{path}: {value!r} is no {kind}"]
    found = []
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{path}: {value!r} is none of {schema['enum']}")
    if "const" in schema and value != schema["const"]:
        found.append(f"{path}: {value!r} is not {schema['const']!r}")
    if "minimum" in schema and isinstance(value, int | float) and value < schema["minimum"]:
        found.append(f"{path}: {value!r} is below {schema['minimum']}")
    return found
