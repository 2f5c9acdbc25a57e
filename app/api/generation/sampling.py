"""How tokens are chosen: as the request says, else as its prefixes do, else by defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.api.generation.prefix_selection import PrefixSelection
from app.api.generation.spec import GenerationSpec
from app.api.schemas.generation import SamplingFields
from app.engine.decoding.beam_search import BeamParams, beam_params
from app.engine.request import SamplingParams
from app.errors import ContextLengthExceeded, InvalidRequest
from app.model.frozen import FrozenModel
from app.model.generation_defaults import GenerationDefaults
from app.prefix.spec import BaseModelSpec

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
_BEAM_OPTIONS = ("num_beams", "length_penalty", "early_stopping")


def sampling_params(
    spec: GenerationSpec,
    selection: PrefixSelection,
    model: FrozenModel,
    num_prompt: int,
    *,
    logit_bias: Mapping[int, float],
    beam: BeamParams | None,
) -> SamplingParams:
    """What the engine is told about a prompt of `num_prompt` tokens."""
    if spec.max_tokens is None:
        most = int(selection.decoding.get("max_tokens", spec.default_max_tokens))
        max_tokens = min(most, room_for(model.spec, selection, num_prompt))
    else:
        max_tokens = spec.max_tokens
    fallbacks = {
        **spec.defaults,
        "min_tokens": model.min_tokens(num_prompt),
        **model.generation.decoding,
        **selection.decoding,
    }
    values: dict[str, Any] = {}
    for name in _SHARED if beam is not None else (*_DRAWING, *_SHARED):
        given = getattr(spec.fields, name)
        value = fallbacks.get(name) if given is None else given
        if value is not None:
            values[name] = value
    if values.get("top_p") == 0:  # as in OpenAI's API the most probable token alone
        values |= {"temperature": 0.0, "top_p": 1.0}
    if values.get("top_k") == -1:  # vLLM's "all tokens"
        values["top_k"] = 0
    stop = selection.decoding.get("stop", ()) if spec.stop is None else spec.stop
    return SamplingParams(
        max_tokens=max_tokens,
        stop=tuple(stop),
        logprobs=spec.logprobs,
        logit_bias=logit_bias,
        beam=beam,
        **values,
    )


def choose_beams(
    spec: GenerationSpec, selection: PrefixSelection, generation: GenerationDefaults
) -> BeamParams | None:
    """How a request searches; None without beams, for one row per result.

    Each option comes from the request, else from its prefixes, else from the model's generation
    config, whose number of beams does not count. A prefix's beams are not used for a request that
    samples or wants no new tokens. InvalidRequest if a request asks for beams and for sampling.
    """
    fields = spec.fields
    sampler = "do_sample" if spec.do_sample else _sampler(fields)
    if fields.num_beams is None and (sampler is not None or spec.max_tokens == 0):
        return None
    given = {name: getattr(fields, name) for name in _BEAM_OPTIONS}
    asked = {name: value for name, value in given.items() if value is not None}
    beam = beam_params({**generation.decoding, **selection.decoding, **asked})
    if beam is not None and sampler is not None:
        raise InvalidRequest(
            f"{sampler} asks to sample and num_beams {beam.num_beams} to search; give one of the "
            "two",
            param=sampler,
        )
    return beam


def check_results(beam: BeamParams, wanted: int, *, param: str) -> None:
    """Raise InvalidRequest if more results are wanted than beams find."""
    if wanted > beam.num_beams:
        raise InvalidRequest(
            f"{param} is {wanted}, but {beam.num_beams} beams have {beam.num_beams} results at "
            "most: ask for more beams with num_beams, or for none with num_beams 1",
            param=param,
        )


def check_alternatives(wanted: int | None, *, param: str) -> None:
    """Raise InvalidRequest if alternatives to the tokens of a result are wanted."""
    if wanted:
        raise InvalidRequest(
            f"{param} is {wanted}, but beam search reports the log-probabilities of the tokens "
            f"that it chose and no alternatives: ask for {param} 0, or for no beams with num_beams "
            "1",
            param=param,
        )


def room_for(spec: BaseModelSpec, selection: PrefixSelection, num_prompt: int) -> int:
    """New tokens that the context leaves after a prompt; ContextLengthExceeded if there are none.

    With an encoder the prompt takes no positions of the decoder, and its start token takes one.
    """
    offset = sum(prefix.metadata.position_offset for prefix in selection.prefixes)
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


def parse_logit_bias(bias: Mapping[str, float]) -> dict[int, float]:
    """OpenAI's logit_bias, which has decimal token ids as keys."""
    result: dict[int, float] = {}
    for key, value in bias.items():
        if not key.isascii() or not key.isdigit() or len(key) > 10:
            raise InvalidRequest(
                f"logit_bias has the key {ascii(key[:40])}, which is no token id",
                param="logit_bias",
            )
        result[int(key)] = value
    return result


def _sampler(fields: SamplingFields) -> str | None:
    """The first field that asks to sample; values that change nothing do not ask."""
    if fields.top_p == 0:  # nothing is drawn
        return None
    asks = {
        "temperature": bool(fields.temperature),
        "top_p": fields.top_p is not None and fields.top_p < 1,
        "top_k": (fields.top_k or 0) > 0,
        "min_p": bool(fields.min_p),
    }
    return next((name for name, asked in asks.items() if asked), None)
