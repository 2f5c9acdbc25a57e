"""Request bodies of the generation routes, with a bound on every field.

Unknown fields are refused; bodies in OpenAI's and TGI's shape take what their clients send besides,
where it means nothing. No number may be NaN or infinite, and every list ends at its first fault.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, StrictBool, StrictInt
from pydantic_core import PydanticCustomError

from app.api.schemas.base import StrictBody, few_keys
from app.api.schemas.client_fields import (
    IGNORED,
    IGNORED_PARAMETERS,
    NEUTRAL_COMPLETION,
    NEUTRAL_PARAMETERS,
    REFUSED_COMPLETION,
    REFUSED_PARAMETERS,
)

MAX_TOKENS = 1_000_000
MAX_STOP = 4
MAX_STOP_CHARACTERS = 256
MAX_BIASES = 1024
MAX_SEED = 2**63 - 1
MAX_PROMPTS = 4096
MAX_TOKEN_IDS = 131_072
MAX_TEXT = 1 << 21

Prompt = str | list[int] | list[str] | list[list[int]]

PromptText = Annotated[str, Field(max_length=MAX_TEXT)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
StopStrings = Annotated[list[StopString], Field(max_length=MAX_STOP, fail_fast=True)]
Probability = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(strict=True, ge=-2, le=2, allow_inf_nan=False)]
Bias = Annotated[float, Field(strict=True, ge=-100, le=100, allow_inf_nan=False)]
ModelName = Annotated[str, Field(min_length=1, max_length=1024)]
ModelNames = Annotated[list[ModelName], Field(min_length=1, max_length=8, fail_fast=True)]
UserName = Annotated[str, Field(max_length=512)]
_Ids = Annotated[
    list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, max_length=MAX_TOKEN_IDS)
]
_KINDS: dict[type, str] = {str: "a text", int: "a token id", list: "a list of token ids"}
_FORMS = "give a text, a list of texts, a list of token ids or a list of such lists"
_MAX_SHOWN = 40


def one_or_more(shape: Any) -> BeforeValidator:
    """Takes one text for a list of one; `shape` describes both."""
    return BeforeValidator(
        lambda value: [value] if isinstance(value, str) else value, json_schema_input_type=shape
    )


def read_prompt(value: Any) -> Prompt:
    """The prompt, if it has one of the four forms; the first fault ends the work.

    By hand, since a union of the forms would try all of them on every element, and collect what is
    wrong with each.
    """
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
            PromptText
            | _Ids
            | Annotated[list[PromptText], Field(min_length=1, max_length=MAX_PROMPTS)]
            | Annotated[list[_Ids], Field(min_length=1, max_length=MAX_PROMPTS)]
        ),
    ),
]

TokenIdsField = Annotated[list[int], PlainValidator(read_ids, json_schema_input_type=_Ids)]


class StreamOptions(StrictBody):
    """OpenAI's `stream_options`."""

    ignored_fields = frozenset({"include_obfuscation"})
    neutral_fields = {"continuous_usage_stats": (False,)}

    include_usage: StrictBool = False


class SearchFields(StrictBody):
    """How an output is searched for, whether drawn or not; None means not given."""

    min_tokens: Annotated[StrictInt, Field(ge=0, le=MAX_TOKENS)] | None = None
    repetition_penalty: (
        Annotated[float, Field(strict=True, ge=0.01, le=10, allow_inf_nan=False)] | None
    ) = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    num_beams: Annotated[StrictInt, Field(ge=1, le=64)] | None = None
    length_penalty: (
        Annotated[float, Field(strict=True, ge=-10, le=10, allow_inf_nan=False)] | None
    ) = None
    early_stopping: Literal[True, False, "never"] | None = None
    no_repeat_ngram_size: Annotated[StrictInt, Field(ge=0, le=64)] | None = None
    timeout: Annotated[float, Field(strict=True, gt=0, le=86400, allow_inf_nan=False)] | None = None
    raw: StrictBool = False


class SamplingFields(SearchFields):
    """Parameters of generation that both request shapes share."""

    temperature: Annotated[float, Field(strict=True, ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[StrictInt, Field(ge=-1, le=MAX_TOKENS)] | None = None
    min_p: Probability | None = None
    seed: Annotated[StrictInt, Field(ge=-(2**63), le=MAX_SEED)] | None = None
    add_special_tokens: StrictBool | None = None
    parse_special: StrictBool | None = None
    prefixes: ModelNames | None = None
    priority: Annotated[StrictInt, Field(ge=-100, le=100)] | None = None
    user: UserName | None = None


class CompletionBody(SamplingFields):
    """`POST /v1/completions`: OpenAI's request and our extras."""

    ignored_fields = IGNORED
    neutral_fields = NEUTRAL_COMPLETION
    refused_fields = REFUSED_COMPLETION

    model: ModelName
    prompt: PromptField | None = None
    max_tokens: Annotated[StrictInt, Field(ge=0, le=MAX_TOKENS)] | None = None
    n: Annotated[StrictInt, Field(ge=1, le=128)] | None = None
    best_of: Annotated[StrictInt, Field(ge=1, le=128)] | None = None
    stop: Annotated[StopStrings, one_or_more(StopString | StopStrings)] | None = None
    logprobs: Annotated[StrictInt, Field(ge=0, le=5)] | None = None
    echo: StrictBool | None = None
    logit_bias: (
        Annotated[dict[str, Bias], Field(max_length=MAX_BIASES), few_keys(MAX_BIASES, "token ids")]
        | None
    ) = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    suffix: str | None = None
    truncate: StrictBool | None = None


class TgiParameters(SamplingFields):
    """`parameters` of `/generate`: TGI's and LoRAX's, and our extras."""

    ignored_fields = IGNORED | IGNORED_PARAMETERS
    neutral_fields = NEUTRAL_PARAMETERS
    refused_fields = REFUSED_PARAMETERS

    adapter_id: ModelName | None = None
    max_new_tokens: Annotated[StrictInt, Field(ge=1, le=MAX_TOKENS)] | None = None
    do_sample: StrictBool | None = None
    best_of: Annotated[StrictInt, Field(ge=1, le=16)] | None = None
    stop: StopStrings | None = None
    return_full_text: StrictBool | None = None
    details: StrictBool | None = None
    decoder_input_details: StrictBool | None = None
    top_n_tokens: Annotated[StrictInt, Field(ge=0, le=5)] | None = None
    truncate: Annotated[StrictInt, Field(ge=1, le=MAX_TOKENS)] | None = None
    typical_p: Any = None
    watermark: StrictBool | None = None
    grammar: Any = None
    response_format: Any = None
    merged_adapters: Any = None
    ignore_eos_token: StrictBool | None = None
    return_k_alternatives: StrictInt | None = None


class GenerateBody(StrictBody):
    """`POST /generate`."""

    ignored_fields = IGNORED | {"options"}
    neutral_fields = {"stream": (False,)}
    refused_fields = {"stream": "ask /generate_stream", "prompt": "give inputs"}

    inputs: PromptText
    parameters: TgiParameters = TgiParameters()


class GenerateStreamBody(GenerateBody):
    """`POST /generate_stream`, which needs no `stream`."""

    neutral_fields = {}

    stream: StrictBool | None = None


class CompatGenerateBody(GenerateBody):
    """`POST /`: `/generate`, or its stream."""

    neutral_fields = {}

    stream: StrictBool = False


class TokenizeBody(StrictBody):
    """`POST /tokenize`: a text, under a prefix's template if `model` names one."""

    ignored_fields = IGNORED
    neutral_fields = {"return_token_strs": (False,)}
    refused_fields = {"messages": "there is no chat here: give prompt", "text": "give prompt"}

    inputs: PromptText | None = None
    prompt: PromptText | None = None
    model: ModelName | None = None
    user: UserName | None = None
    raw: StrictBool = False
    add_special_tokens: StrictBool | None = None
    parse_special: StrictBool | None = None


class DetokenizeBody(StrictBody):
    """`POST /detokenize`."""

    ignored_fields = IGNORED | {"model", "user"}
    refused_fields = {"ids": "give tokens"}

    tokens: TokenIdsField
