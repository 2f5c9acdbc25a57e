"""From request fields to sampling parameters: what was given, else the prefix's, else defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.api.choosing import Choice
from app.api.schemas import SamplingFields
from app.api.services import Services
from app.engine.request import SamplingParams
from app.errors import ContextLengthExceeded, InvalidRequest

_SHARED = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "min_tokens",
    "seed",
)


def sampling_params(
    fields: SamplingFields,
    choice: Choice,
    *,
    max_tokens: int,
    defaults: Mapping[str, Any],
    stop: Sequence[str] | None,
    logprobs: int | None,
    logit_bias: Mapping[int, float] | None = None,
) -> SamplingParams:
    """What the engine is told. `defaults` are those of the API that was called.

    Raises InvalidRequest for what this server does not do.
    """
    _refuse_beams(fields)
    values: dict[str, Any] = {}
    for name in _SHARED:
        given = getattr(fields, name)
        fallback = choice.decoding.get(name, defaults.get(name))
        value = fallback if given is None else given
        if value is not None:
            values[name] = value
    stops = choice.decoding.get("stop", ()) if stop is None else stop
    return SamplingParams(
        max_tokens=max_tokens,
        stop=tuple(stops),
        logprobs=logprobs,
        logit_bias=dict(logit_bias or {}),
        **values,
    )


def choose_max_tokens(
    services: Services, choice: Choice, given: int | None, default: int, num_prompt: int
) -> int:
    """New tokens for a prompt: what was asked, else a default cut to what the context leaves."""
    if given is not None:
        return given
    offset = sum(prefix.metadata.position_offset for prefix in choice.prefixes)
    limit = services.model.spec.context_limit
    room = limit - offset - num_prompt
    if room < 1:
        raise ContextLengthExceeded(
            f"this model's context is {limit} positions; {offset} of the prefix and {num_prompt} "
            "of the prompt leave none for new tokens",
            param="prompt",
        )
    return min(int(choice.decoding.get("max_tokens", default)), room)


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


def _refuse_beams(fields: SamplingFields) -> None:
    """Beam search is refused when a request asks for it; a prefix's default of it is left aside."""
    beams = (fields.num_beams or 1) > 1
    if beams or fields.length_penalty is not None or fields.no_repeat_ngram_size:
        raise InvalidRequest(
            "beam search (num_beams, length_penalty, no_repeat_ngram_size) is not available on "
            "this server",
            param="num_beams",
        )
