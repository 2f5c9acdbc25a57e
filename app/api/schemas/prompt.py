"""The field `prompt`: a text, several texts, the token ids of one prompt, or of several.

Written by hand since a union of the four forms would try all of them on every element, and collect
what is wrong with each.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PlainValidator
from pydantic_core import PydanticCustomError

MAX_PROMPTS = 4096
MAX_TOKEN_IDS = 131_072
MAX_TEXT = 1 << 21

Prompt = str | list[int] | list[str] | list[list[int]]

_Text = Annotated[str, Field(max_length=MAX_TEXT)]
_Ids = Annotated[
    list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, max_length=MAX_TOKEN_IDS)
]
_KINDS: dict[type, str] = {str: "a text", int: "a token id", list: "a list of token ids"}
_FORMS = "give a text, a list of texts, a list of token ids or a list of such lists"
_MAX_SHOWN = 40


def read_prompt(value: Any) -> Prompt:
    """The prompt, if it has one of the four forms; the first fault ends the work."""
    if isinstance(value, str):
        _check_text(value, "the prompt")
        return value
    if not isinstance(value, list):
        raise _fault(f"{_FORMS}; not {printable(value)}")
    if not value:
        raise _fault("give at least one prompt")
    kind = type(value[0])
    if kind not in _KINDS:
        raise _fault(f"{_FORMS}; prompt[0] is {printable(value[0])}")
    if kind is int:
        _check_ids(value, "prompt")
        return value
    _check_alike(value, kind)
    if len(value) > MAX_PROMPTS:
        raise _fault(f"at most {MAX_PROMPTS} prompts are taken; there are {len(value)}")
    check = _check_text if kind is str else _check_ids
    for number, each in enumerate(value):
        check(each, f"prompt[{number}]")
    return value


def read_ids(value: Any) -> list[int]:
    """A list of at least one token id."""
    if not isinstance(value, list):
        raise _fault(f"give a list of token ids; not {printable(value)}")
    _check_ids(value, "tokens")
    if min(value) < 0:
        at = next(at for at, each in enumerate(value) if each < 0)
        raise _fault(f"token ids are 0 or more; tokens[{at}] is {printable(value[at])}")
    return value


def _check_ids(ids: list[Any], where: str) -> None:
    """Raise the first fault of a list of token ids; which ids there are is the model's to say."""
    if not ids:
        raise _fault(f"{where} has no token ids; give at least one")
    if len(ids) > MAX_TOKEN_IDS:
        raise _fault(f"{where} has {len(ids)} token ids; at most {MAX_TOKEN_IDS} are taken")
    if set(map(type, ids)) != {int}:
        at = next(at for at, each in enumerate(ids) if type(each) is not int)
        raise _fault(f"{where}[{at}] is {printable(ids[at])}; a token id is a whole number")


def printable(value: Any) -> str:
    """A value of JSON in a message: short and printable."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return str(value) if abs(value) < 10**_MAX_SHOWN else "a number of many digits"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, str):
        return ascii(value) if len(value) <= _MAX_SHOWN else ascii(value[:_MAX_SHOWN]) + "…"
    return str(value)[:_MAX_SHOWN]


def _check_alike(values: list[Any], kind: type) -> None:
    if len(set(map(type, values))) == 1:
        return
    at = next(at for at, each in enumerate(values) if type(each) is not kind)
    other = printable(values[at])
    raise _fault(f"prompt[0] is {_KINDS[kind]} and prompt[{at}] is {other}; {_FORMS}")


def _check_text(text: str, where: str) -> None:
    if len(text) > MAX_TEXT:
        raise _fault(f"{where} has {len(text)} characters; at most {MAX_TEXT} are taken")


def _fault(message: str) -> PydanticCustomError:
    return PydanticCustomError("invalid_prompt", "{message}", {"message": message})


PromptField = Annotated[
    Prompt,
    PlainValidator(
        read_prompt,
        json_schema_input_type=(
            _Text
            | _Ids
            | Annotated[list[_Text], Field(min_length=1, max_length=MAX_PROMPTS)]
            | Annotated[list[_Ids], Field(min_length=1, max_length=MAX_PROMPTS)]
        ),
    ),
]

TokenIdsField = Annotated[list[int], PlainValidator(read_ids, json_schema_input_type=_Ids)]
