"""Base classes of request bodies: fields that a body does not have are refused by name.

A body in a shape that others defined also takes what their clients send without meaning anything
here: some fields with any value, others with the values that change nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, ClassVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError

UNKNOWN_FIELD = "unknown_field"
"""The type of the validation error; its context names the `field`."""

_MAX_SHOWN = 60


class StrictBody(BaseModel):
    """A body that takes its own fields and no others.

    Validation ends at the first unknown field: the work does not grow with their number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    ignored_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields that are taken with any value and mean nothing here."""

    neutral_fields: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Fields that are not supported, with the values that ask for nothing; null always does."""

    refused_fields: ClassVar[Mapping[str, str]] = {}
    """Fields of other servers, with what to send instead."""

    @model_validator(mode="before")
    @classmethod
    def _drop_what_means_nothing(cls, content: Any) -> Any:
        if not isinstance(content, dict) or content.keys() <= cls.model_fields.keys():
            return content
        known = {}
        for name, value in content.items():
            if name in cls.model_fields:
                known[name] = value
            elif name not in cls.ignored_fields:
                cls._check_neutral(name, value)
        return known

    @classmethod
    def _check_neutral(cls, name: str, value: Any) -> None:
        """Raise unless the field asks for nothing."""
        if name in cls.neutral_fields:
            if value is None or any(_same(value, each) for each in cls.neutral_fields[name]):
                return
            problem = _not_neutral(name, cls.neutral_fields[name])
        else:
            problem = f"unknown field '{_shown(name)}'{cls._advice(name)}"
        hint = cls.refused_fields.get(name)
        message = f"{problem}: {hint}" if hint else problem
        context = {"field": _shown(name), "message": message}
        raise PydanticCustomError(UNKNOWN_FIELD, "{message}", context)

    @classmethod
    def _advice(cls, name: str) -> str:
        """The field that was probably meant, if there is one."""
        if name in cls.refused_fields:
            return ""
        near = (
            get_close_matches(name.lower(), cls.model_fields, n=1, cutoff=0.75)
            if len(name) <= _MAX_SHOWN
            else []
        )
        return f": did you mean '{near[0]}'?" if near else "; /openapi.json has all that are taken"

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """The schema, with the fields that mean nothing."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).setdefault("properties", {})
        for name in sorted(cls.ignored_fields):
            properties[name] = {"description": "Taken from other clients; it has no meaning here."}
        for name, values in sorted(cls.neutral_fields.items()):
            properties[name] = {
                "enum": [None, *values],
                "description": "Not supported; these values ask for nothing.",
            }
        return schema


def few_keys(most: int, what: str) -> BeforeValidator:
    """Refuses a long mapping before any of its keys is looked at."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > most:
            message = f"at most {most} {what} are taken; there are {len(value)}"
            raise PydanticCustomError("too_many_keys", "{message}", {"message": message})
        return value

    return BeforeValidator(check)


def _not_neutral(name: str, values: tuple[Any, ...]) -> str:
    taken = " or ".join(json.dumps(value) for value in (None, *values))
    return f"{name} is not supported; it may be left out or be {taken}"


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON: 1 is 1.0, and neither is true."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _shown(name: str) -> str:
    return ascii(name[:_MAX_SHOWN])[1:-1]
