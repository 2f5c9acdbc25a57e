"""What models of requests and replies share: base classes, types of fields, and replies as JSON.

Fields that a body does not have are refused by name. A body in a shape that others defined also
takes what their clients send without meaning anything here: some fields with any value, others with
the values that change nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Generic, Literal, Self, TypeVar

from fastapi.responses import JSONResponse, Response
from pydantic import (
    MISSING,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError

from app.api.schemas.patterns import DIGEST
from app.runtime.workers import WorkerPool

UNKNOWN_FIELD = "unknown_field"
"""The type of the validation error; its context names the `field`."""

_MAX_SHOWN = 60
SHORT_WORK = 2000
"""Characters or tokens that are worked on at once: less than a thread's turn would cost."""
_SLICE = 64
"""Items of a list that are written at once."""

Item = TypeVar("Item", bound=BaseModel)

Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[int, Field(description="seconds since 1970")]
Digest = Annotated[str, Field(pattern=DIGEST)]
Weights = dict[str, Annotated[int, Field(ge=1)]]


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


def _require_what_is_always_there(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Describes every field as required but those that may be missing."""
    fields = model.model_fields.items()
    schema["required"] = [name for name, field in fields if field.default is not MISSING]


class Reply(BaseModel):
    """The content of a reply. A field whose default is MISSING is left out unless it is given."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        json_schema_extra=_require_what_is_always_there,
    )

    @classmethod
    def of(cls, source: object, **more: Any) -> Self:
        """The reply with the attributes of `source` that have a field's name, and `more`."""
        names = [name for name in cls.model_fields if name not in more and hasattr(source, name)]
        return cls(**{name: getattr(source, name) for name in names}, **more)

    def response(
        self, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> StrictJSONResponse:
        """The reply as HTTP."""
        return StrictJSONResponse(self.model_dump(), status, headers)


class PageReply(Reply, Generic[Item]):
    """A part of a list; `next_cursor` asks for the following part."""

    object: Literal["list"] = "list"
    data: list[Item]
    next_cursor: str | None


class ErrorFields(Reply):
    """What is wrong: `param` names the field, `code` the kind."""

    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str


class ErrorReply(Reply):
    """An error in OpenAI's shape."""

    error: ErrorFields


class TgiErrorReply(Reply):
    """An error in TGI's shape."""

    error: str
    error_type: Literal["validation", "overloaded", "generation"]


class StrictJSONResponse(JSONResponse):
    """JSON that never holds NaN."""

    def render(self, content: Any) -> bytes:
        """Compact UTF-8 JSON."""
        return _dumps(content)


async def json_reply(
    pool: WorkerPool,
    tenant: str,
    size: int,
    make: Callable[[], Any],
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The content that `make` returns, of some `size` tokens, as a response.

    A large one is made in a thread of `pool`.
    """
    if size < SHORT_WORK:
        return StrictJSONResponse(make(), headers=headers)
    body = await pool.run(tenant, lambda: encode_json(make()))
    return Response(body, media_type=StrictJSONResponse.media_type, headers=headers)


def encode_json(content: Any) -> bytes:
    """Compact JSON in UTF-8; never NaN. Written in pieces.

    The library's encoder keeps the interpreter's lock until it is done, in any thread.
    """
    return b"".join(_pieces(content))


def _pieces(content: Any) -> Iterator[bytes]:
    if isinstance(content, dict):
        yield b"{"
        for number, (name, value) in enumerate(content.items()):
            yield (b"," if number else b"") + _dumps(name) + b":"
            yield from _pieces(value)
        yield b"}"
    elif isinstance(content, list) and content:
        yield b"["
        yield from _items(content)
        yield b"]"
    else:
        yield _dumps(content)


def _items(content: list[Any]) -> Iterator[bytes]:
    first = content[0]
    holds_lists = isinstance(first, list) or (
        isinstance(first, dict) and any(isinstance(value, list | dict) for value in first.values())
    )
    if holds_lists:
        for number, item in enumerate(content):
            yield b"," if number else b""
            yield from _pieces(item)
        return
    for start in range(0, len(content), _SLICE):
        yield (b"," if start else b"") + _dumps(content[start : start + _SLICE])[1:-1]


def _dumps(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


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
