"""Schemas made narrower: what follows them follows the client's."""

from __future__ import annotations

from typing import Any

import pytest

from loragraft.server.narrowing import narrowed

CITY: dict[str, Any] = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
CLOSED = {**CITY, "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "wanted"),
    [
        (CITY, CLOSED),
        ({"type": "array", "items": CITY}, {"type": "array", "items": CLOSED}),
        ({"anyOf": [CITY, {"type": "null"}]}, {"anyOf": [CLOSED, {"type": "null"}]}),
        ({"$defs": {"c": CITY}, "$ref": "#/$defs/c"}, {"$defs": {"c": CLOSED}, "$ref": "#/$defs/c"}),
        (
            {"properties": {"a": CITY, "properties": {"type": "string"}}},
            {"properties": {"a": CLOSED, "properties": {"type": "string"}}, "additionalProperties": False},
        ),
    ],
)
def test_objects_that_list_their_properties_hold_no_others(schema: Any, wanted: Any) -> None:
    assert narrowed(schema) == wanted


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"type": "object", "properties": {}},
        CLOSED,
        {**CITY, "additionalProperties": {"type": "number"}},
        {**CITY, "additionalProperties": True},
        {**CITY, "patternProperties": {"^x": {}}},
        {**CITY, "required": ["name", "age"]},
        {**CITY, "minProperties": 2},
        {"allOf": [CITY, {"properties": {"age": {}}}]},
        {**CITY, "anyOf": [{"properties": {"age": {}}}, {}]},
        {"$defs": {"c": CITY}, "$ref": "#/$defs/c", "properties": {"age": {}}},
        {"properties": [], "items": 3, "anyOf": {}, "required": "name"},
        {"properties": {"a": CITY}, "not": CITY},
    ],
)
def test_what_says_otherwise_stays(schema: Any) -> None:
    assert narrowed(schema) == schema
