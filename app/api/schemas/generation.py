"""Request bodies, with a bound on every field; no logic.

Unknown fields are refused; bodies in OpenAI's and TGI's shape take what their clients send besides,
where it means nothing. No number may be NaN or infinite, and every list ends at its first fault.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool, StrictInt

from app.api.schemas.base import StrictBody, few_keys
from app.api.schemas.client_fields import (
    IGNORED,
    IGNORED_PARAMETERS,
    NEUTRAL_COMPLETION,
    NEUTRAL_PARAMETERS,
    REFUSED_COMPLETION,
    REFUSED_PARAMETERS,
)
from app.api.schemas.prompt import MAX_TEXT, PromptField, TokenIdsField

MAX_TOKENS = 1_000_000
MAX_STOP = 4
MAX_STOP_CHARACTERS = 256
MAX_BIASES = 1024
MAX_SEED = 2**63 - 1

PromptText = Annotated[str, Field(max_length=MAX_TEXT)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
StopStrings = Annotated[list[StopString], Field(max_length=MAX_STOP, fail_fast=True)]
Probability = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(strict=True, ge=-2, le=2, allow_inf_nan=False)]
Bias = Annotated[float, Field(strict=True, ge=-100, le=100, allow_inf_nan=False)]
ModelName = Annotated[str, Field(min_length=1, max_length=1024)]
ModelNames = Annotated[list[ModelName], Field(min_length=1, max_length=8, fail_fast=True)]
UserName = Annotated[str, Field(max_length=512)]


def one_or_more(shape: Any) -> BeforeValidator:
    """Takes one text for a list of one; `shape` describes both."""
    return BeforeValidator(
        lambda value: [value] if isinstance(value, str) else value, json_schema_input_type=shape
    )


class StreamOptions(StrictBody):
    """OpenAI's `stream_options`."""

    ignored_fields = frozenset({"include_obfuscation"})
    neutral_fields = {"continuous_usage_stats": (False,)}

    include_usage: StrictBool = False


class SamplingFields(StrictBody):
    """Parameters of generation that both request shapes share; None means not given."""

    temperature: Annotated[float, Field(strict=True, ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[StrictInt, Field(ge=-1, le=MAX_TOKENS)] | None = None
    min_p: Probability | None = None
    repetition_penalty: (
        Annotated[float, Field(strict=True, ge=0.01, le=10, allow_inf_nan=False)] | None
    ) = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    min_tokens: Annotated[StrictInt, Field(ge=0, le=MAX_TOKENS)] | None = None
    seed: Annotated[StrictInt, Field(ge=-(2**63), le=MAX_SEED)] | None = None
    timeout: Annotated[float, Field(strict=True, gt=0, le=86400, allow_inf_nan=False)] | None = None
    raw: StrictBool = False
    add_special_tokens: StrictBool | None = None
    parse_special: StrictBool | None = None
    prefixes: (
        Annotated[list[ModelName], Field(min_length=1, max_length=8, fail_fast=True)] | None
    ) = None
    num_beams: Annotated[StrictInt, Field(ge=1, le=64)] | None = None
    length_penalty: (
        Annotated[float, Field(strict=True, ge=-10, le=10, allow_inf_nan=False)] | None
    ) = None
    early_stopping: Literal[True, False, "never"] | None = None
    no_repeat_ngram_size: Annotated[StrictInt, Field(ge=0, le=64)] | None = None
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
    stop: (
        Annotated[
            StopStrings,
            one_or_more(StopString | StopStrings),
        ]
        | None
    ) = None
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
