"""From request fields to sampling parameters: what was given, else the prefix's, else defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.api.generation.prefix_selection import PrefixSelection
from app.api.schemas.generation import SamplingFields
from app.api.services import Services
from app.engine.decoding.beam_search import BeamParams
from app.engine.request import SamplingParams
from app.errors import ContextLengthExceeded, InvalidRequest
from app.model.generation_defaults import GenerationDefaults

_DRAWING = ("temperature", "top_p", "top_k", "min_p")
"""How a token is drawn; with beams none is."""

_SHARED = (
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "no_repeat_ngram_size",
    "min_tokens",
    "seed",
)


def sampling_params(
    fields: SamplingFields,
    choice: PrefixSelection,
    generation: GenerationDefaults,
    *,
    max_tokens: int,
    num_before: int,
    defaults: Mapping[str, Any],
    stop: Sequence[str] | None,
    logprobs: int | None,
    logit_bias: Mapping[int, float] | None = None,
    beam: BeamParams | None = None,
) -> SamplingParams:
    """What the engine is told: as the request says, else its prefixes, else the model.

    `defaults` are those of the API that was called; `num_before` tokens stand before the first new
    one in the decoder.
    """
    values: dict[str, Any] = {}
    fallbacks = {
        **defaults,
        "min_tokens": generation.min_tokens(num_before),
        **generation.decoding,
        **choice.decoding,
    }
    for name in _SHARED if beam is not None else (*_DRAWING, *_SHARED):
        given = getattr(fields, name)
        value = fallbacks.get(name) if given is None else given
        if value is not None:
            values[name] = value
    if values.get("top_p") == 0:  # as in OpenAI's API the most probable token alone
        values |= {"temperature": 0.0, "top_p": 1.0}
    if values.get("top_k") == -1:  # vLLM's "all tokens"
        values["top_k"] = 0
    stops = choice.decoding.get("stop", ()) if stop is None else stop
    return SamplingParams(
        max_tokens=max_tokens,
        stop=tuple(stops),
        logprobs=logprobs,
        logit_bias=dict(logit_bias or {}),
        beam=beam,
        **values,
    )


def choose_max_tokens(
    services: Services, choice: PrefixSelection, given: int | None, default: int, num_prompt: int
) -> int:
    """New tokens for a prompt: what was asked, else a default cut to what the context leaves."""
    if given is not None:
        return given
    room = room_for(services, choice, num_prompt)
    return min(int(choice.decoding.get("max_tokens", default)), room)


def num_before(services: Services, num_prompt: int) -> int:
    """Tokens before the first new one: the prompt, or behind an encoder the start token."""
    return num_prompt if services.model.start_tokens is None else 1


def room_for(services: Services, choice: PrefixSelection, num_prompt: int) -> int:
    """New tokens that the context leaves behind a prompt; ContextLengthExceeded if it is none.

    Of a decoder behind an encoder the prompt takes no positions, and the start token takes one.
    """
    offset = sum(prefix.metadata.position_offset for prefix in choice.prefixes)
    spec = services.model.spec
    taken, taker, param = num_prompt, "of the prompt", "prompt"
    if spec.source_limit is not None:
        taken, taker, param = 1, "of the decoder's start token", "model"
    room = spec.context_limit - offset - taken
    if room < 1:
        raise ContextLengthExceeded(
            f"this model's context is {spec.context_limit} positions; {offset} of the prefix and "
            f"{taken} {taker} leave none for new tokens",
            param=param,
        )
    return room


def parse_logit_bias(bias: Mapping[str, float] | None) -> dict[int, float]:
    """OpenAI's logit_bias: decimal token ids as keys."""
    result: dict[int, float] = {}
    for key, value in (bias or {}).items():
        if not key.isascii() or not key.isdigit() or len(key) > 10:
            raise InvalidRequest(
                f"logit_bias has the key {ascii(key[:40])}, which is no token id",
                param="logit_bias",
            )
        result[int(key)] = value
    return result
