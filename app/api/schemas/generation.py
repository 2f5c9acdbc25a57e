"""Request bodies, with a bound on every field; no logic.

Unknown fields are refused; bodies in OpenAI's and TGI's shape take what their clients send besides,
where it means nothing. No number may be NaN or infinite, and every list ends at its first fault.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool, StrictInt, model_validator
from pydantic_core import PydanticCustomError

from app.api.schemas.base import StrictBody
from app.api.schemas.client_fields import (
    IGNORED,
    IGNORED_PARAMETERS,
    NEUTRAL_COMPLETION,
    NEUTRAL_PARAMETERS,
    REFUSED_COMPLETION,
    REFUSED_PARAMETERS,
)
from app.api.schemas.prompt import MAX_TEXT, PromptField, TokenIdsField
from app.registry.publications import MAX_GRANTEES
from app.registry.splits import MAX_VERSIONS, MAX_WEIGHT, MIN_VERSIONS
from app.tenancy.auth.principal import TENANT_SCOPES, Scope

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
DigestStart = Annotated[str, Field(min_length=6, max_length=64, pattern="^[0-9a-f]+$")]
Weight = Annotated[StrictInt, Field(ge=1, le=MAX_WEIGHT)]
TenantId = Annotated[str, Field(min_length=1, max_length=64)]


def one_or_more(shape: Any) -> BeforeValidator:
    """Takes one text for a list of one; `shape` describes both."""
    return BeforeValidator(
        lambda value: [value] if isinstance(value, str) else value, json_schema_input_type=shape
    )


def _few(most: int, what: str) -> BeforeValidator:
    """Refuses a long mapping before any of its keys is looked at."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > most:
            message = f"at most {most} {what} are taken; there are {len(value)}"
            raise PydanticCustomError("too_many_keys", "{message}", {"message": message})
        return value

    return BeforeValidator(check)


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
        Annotated[dict[str, Bias], Field(max_length=MAX_BIASES), _few(MAX_BIASES, "token ids")]
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


class AliasBody(StrictBody):
    """`PUT …/aliases/{alias}`: a version, or several with their weights; digests or unique starts
    of them."""

    version: DigestStart | None = None
    split: (
        Annotated[
            dict[DigestStart, Weight],
            Field(min_length=MIN_VERSIONS, max_length=MAX_VERSIONS),
            _few(MAX_VERSIONS, "versions"),
        ]
        | None
    ) = None

    @model_validator(mode="after")
    def _one_of_both(self) -> AliasBody:
        if (self.version is None) == (self.split is None):
            raise ValueError("give either version or split")
        return self


class PublicationBody(StrictBody):
    """`PUT …/publication`: the tenants by their ids, or everyone."""

    tenants: Annotated[list[TenantId], Field(max_length=MAX_GRANTEES, fail_fast=True)] = []
    everyone: StrictBool = False


class LimitsBody(StrictBody):
    """Limits of a tenant; null is no limit. Their bounds are the limits' own."""

    requests_per_minute: StrictInt | None = None
    tokens_per_minute: StrictInt | None = None
    max_rows: StrictInt | None = None
    max_queue: StrictInt | None = None
    max_prefixes: StrictInt | None = None
    max_bytes: StrictInt | None = None
    weight: Annotated[float, Field(strict=True, allow_inf_nan=False)] | None = None


class TenantBody(StrictBody):
    """`POST /admin/tenants`."""

    id: Annotated[str, Field(max_length=256)]
    limits: LimitsBody = LimitsBody()


class TenantPatchBody(StrictBody):
    """`PATCH /admin/tenants/{id}`: what is left out stays."""

    limits: LimitsBody | None = None
    disabled: StrictBool | None = None


class KeyBody(StrictBody):
    """`POST …/keys`. Times are in seconds since 1970."""

    scopes: Annotated[list[Scope], Field(min_length=1, max_length=16, fail_fast=True)] = sorted(
        TENANT_SCOPES
    )
    label: Annotated[str, Field(max_length=128)] = ""
    not_before: Annotated[StrictInt, Field(ge=0, le=2**40)] | None = None
    expires_at: Annotated[StrictInt, Field(ge=0, le=2**40)] | None = None
