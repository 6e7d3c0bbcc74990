"""JSON schemas made narrower, so that models come to an end.

By JSON Schema an object may hold any properties beside those that are listed, unless it says otherwise. Few schemas say
so, and a small model then goes on making some up until it is cut off. What follows the narrower schema follows the
client's, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

#: Beside them the properties of one object may be listed in several places: no place knows them all.
_SHARED = ("allOf", "anyOf", "oneOf", "not", "$ref", "$dynamicRef", "if", "dependentSchemas", "dependencies")
#: What says how an object is open.
_SAID = (
    "additionalProperties",
    "unevaluatedProperties",
    "patternProperties",
    "propertyNames",
    "minProperties",
)
_MAPS, _LISTS = ("properties", "$defs", "definitions"), ("prefixItems", "anyOf", "oneOf")


def narrowed(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema`, with objects closed that list their properties and do not say that there may be others. As it is, where
    the properties of an object stand in several places."""
    if any(_is_shared(each) for each in _schemas(schema)):
        return schema
    closed: dict[str, Any] = _closed(schema)
    return closed


def _is_shared(schema: dict[str, Any]) -> bool:
    return any(
        key in schema
        for key in ("allOf", "not", "if", "dependentSchemas", "dependencies", "unevaluatedProperties")
    ) or ("properties" in schema and any(key in schema for key in _SHARED))


def _parts(schema: dict[str, Any]) -> Iterator[Any]:
    for key in _MAPS:
        if isinstance(schema.get(key), dict):
            yield from schema[key].values()
    for key in _LISTS:
        if isinstance(schema.get(key), list):
            yield from schema[key]
    yield schema.get("items")


def _schemas(schema: Any) -> Iterator[dict[str, Any]]:
    waiting = [schema]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
            waiting += _parts(one)


def _closed(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    made = dict(schema)
    for key in _MAPS:
        if isinstance(made.get(key), dict):
            made[key] = {name: _closed(part) for name, part in made[key].items()}
    for key in _LISTS:
        if isinstance(made.get(key), list):
            made[key] = [_closed(part) for part in made[key]]
    if "items" in made:
        made["items"] = _closed(made["items"])
    listed, required = made.get("properties"), made.get("required", [])
    if (
        isinstance(listed, dict)
        and listed
        and isinstance(required, list)
        and all(isinstance(name, str) and name in listed for name in required)
        and not any(key in made for key in _SAID)
    ):
        made["additionalProperties"] = False
    return made
