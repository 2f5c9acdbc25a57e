"""What is wrong with a body, in a sentence: which field, what it takes, what came instead."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from app.api.schemas.base import UNKNOWN_FIELD
from app.api.schemas.generation import printable
from app.api.schemas.patterns import IN_WORDS
from app.errors import InvalidRequest, PolyprefixError, Unprocessable

_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]+")
"""A part of a field's name; others are the validator's own, such as the branches of a union."""

_MAX_NAME = 120
_MAX_MESSAGE = 400

_SAYINGS: dict[str, str] = {
    "missing": "is missing",
    "bool_type": "takes true or false, not {input}",
    "int_type": "takes a whole number, not {input}",
    "int_parsing": "takes a whole number, not {input}",
    "int_from_float": "takes a whole number, not {input}",
    "float_type": "takes a number, not {input}",
    "float_parsing": "takes a number, not {input}",
    "finite_number": "takes a finite number",
    "string_type": "takes a text, not {input}",
    "string_unicode": "holds a lone surrogate, which no text has",
    "list_type": "takes a list, not {input}",
    "dict_type": "takes an object, not {input}",
    "model_type": "takes an object, not {input}",
    "model_attributes_type": "takes an object, not {input}",
    "literal_error": "takes {expected}, not {input}",
    "enum": "takes {expected}, not {input}",
    "greater_than": "takes more than {gt}; {input} is too little",
    "greater_than_equal": "takes {ge} or more; {input} is too little",
    "less_than": "takes less than {lt}; {input} is too much",
    "less_than_equal": "takes {le} at most; {input} is too much",
    "string_too_short": "takes {min_length} or more characters; there are {length}",
    "string_too_long": "takes at most {max_length} characters; there are {length}",
    "too_short": "takes {min_length} or more items; there are {length}",
    "too_long": "takes at most {max_length} items; there are {length}",
}
"""By the validator's type of error; a type that is not here is told in the validator's words."""

_ANOTHER_FORM = "has another form than /openapi.json describes"

_OF_FIELDS: dict[tuple[str, str], str] = {
    ("stop", "too_long"): "at most {max_length} stop strings are taken; there are {length}",
    ("model", "missing"): "name a model or a prefix; GET /v1/models lists them",
    ("model", "string_too_short"): "name a model or a prefix; GET /v1/models lists them",
    ("output", "missing"): "give the right output, as output or target",
    ("adapter_id", "string_too_short"): "name a prefix, or leave adapter_id out",
}
"""Where a field has words of its own."""


def validation_error(errors: Sequence[Mapping[str, Any]], *, status: int) -> PolyprefixError:
    """The first of the framework's errors as ours, with `status` 400 or 422."""
    kind = InvalidRequest if status == InvalidRequest.status else Unprocessable
    first = errors[0]
    context: Mapping[str, Any] = first.get("ctx") or {}
    if first["type"] == "json_invalid":
        return kind(f"the body is not JSON: {context['error']}")
    source, *parts = (str(part) for part in first["loc"])
    where = [part for part in parts if _FIELD.fullmatch(part)]
    if first["type"] == UNKNOWN_FIELD:
        field = ".".join([*where, context["field"]])[:_MAX_NAME]
        return kind(f"{'.'.join([*where, ''])}{first['msg']}"[:_MAX_MESSAGE], param=field)
    field = ".".join(where)[:_MAX_NAME]
    message = f"{field or f'the {source}'}: {_saying(first, where, context)}"
    return kind(message[:_MAX_MESSAGE], param=field or None)


def _saying(error: Mapping[str, Any], where: Sequence[str], context: Mapping[str, Any]) -> str:
    kind, value = error["type"], error.get("input")
    last = where[-1] if where else ""
    if kind == "string_pattern_mismatch":
        return f"{printable(value)} {IN_WORDS.get(context['pattern'], _ANOTHER_FORM)}"
    saying = _OF_FIELDS.get((last, kind), _SAYINGS.get(kind))
    if saying is None:
        return str(error["msg"]).removeprefix("Value error, ")
    length = len(value) if isinstance(value, str | list | dict) else "none"
    bounds = {name: _bound(each) for name, each in context.items()}
    return saying.format_map({"length": length, **bounds, "input": printable(value)})


def _bound(value: Any) -> Any:
    """A bound as JSON writes it."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        return value.replace("True", "true").replace("False", "false")
    return value
