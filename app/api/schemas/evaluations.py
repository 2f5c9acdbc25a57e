"""Evaluations, comparisons, quality gates and prefixes of a text: bodies and replies."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StrictBool, StrictInt, model_validator
from pydantic_core import PydanticCustomError

from app.api.schemas.base import Count, Digest, Reply, Seconds, StrictBody
from app.api.schemas.generation import MAX_TOKENS, SearchFields, StopStrings, one_or_more
from app.api.schemas.patterns import NOT_BLANK, SELECTOR

MAX_EXAMPLES = 256
MAX_COMPARED = 64
MAX_REFERENCES = 16
_MAX_INPUT = 1 << 17
_MAX_OUTPUT = 1 << 14

Metric = Literal["loss", "exact_match", "bleu", "rouge_l"]
GateMetric = Literal["mean_logprob", "exact_match", "bleu", "rouge_l"]

Selector = Annotated[str, Field(min_length=1, max_length=64, pattern=SELECTOR)]
Input = Annotated[str, Field(min_length=1, max_length=_MAX_INPUT)]
Output = Annotated[str, Field(min_length=1, max_length=_MAX_OUTPUT, pattern=NOT_BLANK)]


_Outputs = Annotated[list[Output], Field(min_length=1, max_length=MAX_REFERENCES, fail_fast=True)]
_OUTPUT_NAMES = ("output", "target", "targets")
"""One field: training data call it `target`, or `targets` if there are several."""


def _under_one_name(content: Any) -> Any:
    """An example whose output is called `output`."""
    if not isinstance(content, dict):
        return content
    given = [name for name in _OUTPUT_NAMES if name in content]
    if len(given) > 1:
        message = f"give one of {', '.join(_OUTPUT_NAMES)}; there are {' and '.join(given)}"
        raise PydanticCustomError("several_outputs", "{message}", {"message": message})
    if given in ([], ["output"]):
        return content
    rest = {name: value for name, value in content.items() if name not in _OUTPUT_NAMES}
    return {**rest, "output": content[given[0]]}


def _with_other_names(schema: dict[str, Any]) -> None:
    """Describes an example whose output has any of its names."""
    fields = schema["properties"]
    for name in _OUTPUT_NAMES[1:]:
        fields[name] = {**fields["output"], "title": name.capitalize()}
    is_needed = "output" in schema["required"]
    schema["required"] = ["input"]
    # `input` and one name of the output: no other fields are taken
    schema |= {"minProperties": 2 if is_needed else 1, "maxProperties": 2}


class _PairBody(StrictBody):
    model_config = ConfigDict(json_schema_extra=_with_other_names)

    _one_name = model_validator(mode="before")(_under_one_name)


class ExampleBody(_PairBody):
    """An input with the output that is right for it, or with several."""

    input: Input
    output: Annotated[_Outputs, one_or_more(Output | _Outputs)]

    @property
    def references(self) -> tuple[str, ...]:
        """All outputs that are right."""
        return tuple(self.output)


class ComparedBody(_PairBody):
    """An input and, if one is known, the output that is right for it."""

    input: Input
    output: Output | None = None


class DecodingFields(SearchFields):
    """How outputs are searched for; nothing is drawn at random. None: as the version says."""

    max_tokens: Annotated[StrictInt, Field(ge=1, le=MAX_TOKENS)] | None = None
    stop: StopStrings | None = None
    truncate: StrictBool = False


class EvaluateBody(DecodingFields):
    """`POST …/evaluate`: which version, on what, by which metrics."""

    version: Selector = "latest"
    examples: Annotated[
        list[ExampleBody], Field(min_length=1, max_length=MAX_EXAMPLES, fail_fast=True)
    ]
    metrics: Annotated[list[Metric], Field(min_length=1, max_length=4, fail_fast=True)] = [
        "loss",
        "exact_match",
        "bleu",
        "rouge_l",
    ]


class CompareBody(DecodingFields):
    """`POST …/compare`: two versions of one prefix."""

    a: Selector
    b: Selector
    examples: Annotated[
        list[ComparedBody], Field(min_length=1, max_length=MAX_COMPARED, fail_fast=True)
    ]


class GateBody(StrictBody):
    """`PUT …/aliases/{alias}/gate`: what a version must reach, and on what."""

    metric: GateMetric
    min_score: Annotated[float, Field(strict=True, ge=-1e6, le=100, allow_inf_nan=False)]
    examples: Annotated[
        list[ExampleBody], Field(min_length=1, max_length=MAX_EXAMPLES, fail_fast=True)
    ]


class FromTextBody(StrictBody):
    """`POST …/from-text`: the words that become a prefix."""

    text: Annotated[str, Field(min_length=1, max_length=1 << 20)]
    alias: Annotated[str, Field(max_length=64)] | None = None
    input_template: Annotated[str, Field(max_length=4096)] | None = None
    user: Annotated[str, Field(min_length=1, max_length=512)] | None = None


class ScoredExampleReply(Reply):
    """What is known of one example; null where no metric asked for it."""

    output: str | None
    exact_match: bool | None
    loss: float | None


class EvaluationReply(Reply):
    """The scores of one version."""

    object: Literal["prefix.evaluation"] = "prefix.evaluation"
    name: str
    version: Digest
    scores: dict[str, float]
    num_examples: Count
    num_target_tokens: Count | None
    bleu_signature: str | None
    examples: list[ScoredExampleReply]


class AnswerReply(Reply):
    """What one version says to an example, and its loss per token if there is an output."""

    output: str
    loss: float | None


class ComparedExampleReply(Reply):
    """Two versions on one example, in nats per token of the target."""

    a: AnswerReply
    b: AnswerReply
    same_output: bool
    target: Literal["output", "a"]
    num_target_tokens: Count
    kl_ab: float | None
    kl_ba: float | None


class ComparisonReply(Reply):
    """Two versions side by side, in nats per token of all targets."""

    object: Literal["prefix.comparison"] = "prefix.comparison"
    name: str
    a: Digest
    b: Digest
    loss_a: float | None
    loss_b: float | None
    kl_ab: float | None
    kl_ba: float | None
    same_outputs: Count
    num_examples: Count
    examples: list[ComparedExampleReply]


class GateExampleReply(Reply):
    """An example of a gate, with all outputs that are right."""

    input: str
    output: list[str]


class AliasGateReply(Reply):
    """What a version must score before the alias moves to it."""

    object: Literal["prefix.alias.gate"] = "prefix.alias.gate"
    name: str
    alias: str
    metric: GateMetric
    min_score: float
    examples: list[GateExampleReply]
    updated_at: Seconds


class AliasGateDeleted(Reply):
    """A gate that is gone."""

    object: Literal["prefix.alias.gate"] = "prefix.alias.gate"
    name: str
    alias: str
    deleted: Literal[True] = True
