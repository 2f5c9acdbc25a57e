"""Builders of JSON Schemas for what replies hold: objects have just the fields that are named."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def ref(name: str) -> Schema:
    """A reference to a schema that the description has under this name."""
    return {"$ref": f"#/components/schemas/{name}"}


def object_of(fields: dict[str, Schema], /, **optional: Schema) -> Schema:
    """An object that has all `fields`, may have `optional` ones, and no others."""
    return {
        "type": "object",
        "properties": {**fields, **optional},
        "required": list(fields),
        "additionalProperties": False,
    }


def list_of(item: Schema) -> Schema:
    """An array."""
    return {"type": "array", "items": item}


def or_null(schema: Schema) -> Schema:
    """What may be null."""
    return {"anyOf": [schema, {"type": "null"}]}


def map_of(value: Schema) -> Schema:
    """An object whose keys are data."""
    return {"type": "object", "additionalProperties": value}


def just(*values: object) -> Schema:
    """One of these values."""
    return {"enum": list(values)}


def event_of(content: Schema, *, end: str | None = None) -> Schema:
    """Each event of a stream, with JSON as its data; the last one may be the text `end`."""
    data: Schema = {"contentMediaType": "application/json", "contentSchema": content}
    shape = data if end is None else {"anyOf": [just(end), data]}
    return {"type": "object", "properties": {"data": {"type": "string", **shape}}}


def page_of(name: str) -> Schema:
    """A part of a list; `next_cursor` asks for the following part."""
    return object_of({"object": just("list"), "data": list_of(ref(name)), "next_cursor": MAYBE})


def deleted(kind: str, *named: str) -> Schema:
    """What is answered once something is gone, with the texts that name it."""
    return object_of(
        {"object": just(kind), **dict.fromkeys(named, TEXT), "deleted": just(True)},
    )


TEXT: Schema = {"type": "string"}
MAYBE: Schema = or_null(TEXT)
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
SWITCH: Schema = {"type": "boolean"}
ANYTHING: Schema = {"type": "object"}
TIME: Schema = {"type": "integer", "description": "seconds since 1970"}
MOMENT: Schema = or_null(TIME)
DIGEST: Schema = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
SCORE: Schema = or_null(NUMBER)
WEIGHTS: Schema = map_of({"type": "integer", "minimum": 1})
