"""What all replies share: their base class, the types of their fields, pages, and errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import MISSING, BaseModel, ConfigDict, Field

from app.api.errors import StrictJSONResponse

Item = TypeVar("Item", bound=BaseModel)

Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[int, Field(description="seconds since 1970")]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Weights = dict[str, Annotated[int, Field(ge=1)]]


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
