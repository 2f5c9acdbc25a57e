"""What a request asks to generate, in the same words for every API."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.api.schemas.generation import SamplingFields
from app.engine.decoding.beam_search import BeamParams


@dataclass(frozen=True)
class GenerationSpec:
    """`num_results` results for each of `prompts`, which are texts or token ids.

    `fields` are those that all APIs share; `defaults` are the API's own for what neither they nor
    the prefixes set. `default_max_tokens` is cut to what the context leaves, `max_tokens` is not.
    Of each prompt at most `cut_to` tokens are read. With `scores_prompt` and `logprobs` the
    prompt's tokens get log-probabilities too. `check_beams` raises InvalidRequest for what a beam
    search cannot do, in the words of the API; it is called only if beams are searched.
    """

    fields: SamplingFields
    model: str | None
    prompts: Sequence[str | list[int]]
    max_tokens: int | None
    default_max_tokens: int
    check_beams: Callable[[BeamParams], None]
    num_results: int = 1
    defaults: Mapping[str, Any] = field(default_factory=dict)
    do_sample: bool = False
    stop: Sequence[str] | None = None
    logprobs: int | None = None
    logit_bias: Mapping[str, float] | None = None
    scores_prompt: bool = False
    cut_to: int | None = None
    streams: bool = False
