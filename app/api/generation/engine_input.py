"""What the engine gets for a request: token ids of its prompts, and how tokens are chosen.

Long texts are encoded off the loop. A token is chosen as the request says, else as its prefixes do,
else by defaults.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from app.api.generation.prefix_selection import PrefixSelection
from app.api.schemas.base import SHORT_WORK
from app.api.schemas.generation import SamplingFields
from app.engine.decoding.beam_search import BeamParams, beam_params
from app.engine.request import SamplingParams
from app.errors import ContextLengthExceeded, InvalidRequest
from app.model.frozen import FrozenModel
from app.model.generation_defaults import GenerationDefaults
from app.prefix.spec import BaseModelSpec
from app.runtime.workers import WorkerPool

Result = TypeVar("Result")

MAX_TOKEN_CHARACTERS = 128
"""No token of a byte-level vocabulary is longer; a text beyond limit × this cannot fit."""

SURROGATE = re.compile("[\ud800-\udfff]")
"""Half a character, which cannot be encoded."""

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


async def off_loop(
    pool: WorkerPool, tenant: str, size: int, work: Callable[..., Result], *arguments: Any
) -> Result:
    """`work(*arguments)`, in a thread of `pool` unless it is short.

    `size` is in characters or tokens.
    """
    if size < SHORT_WORK:
        return work(*arguments)
    return await pool.run(tenant, work, *arguments)


async def encode_prompts(
    model: FrozenModel,
    pool: WorkerPool,
    tenant: str,
    prompts: Sequence[str | list[int]],
    *,
    template: str | None,
    cut_to: int | None = None,
    add_special_tokens: bool | None = None,
    parse_special: bool = False,
) -> list[tuple[int, ...]]:
    """Token ids of each prompt; a text goes through `template`.

    Without a template the tokenizer's own special tokens are added unless `add_special_tokens` is
    False; those that the text spells are parsed with `parse_special` alone.

    All are encoded in one turn, off the event loop unless they are short together. Prompts are cut
    to `cut_to` tokens: an encoder reads the first ones and the end-of-text token, any other model
    the last ones.

    Raises InvalidRequest before any work if a prompt cannot be encoded or cannot fit.
    """
    if cut_to is not None:
        prompts = [_shorten(model.spec, prompt) for prompt in prompts]
    num_characters = 0
    for number, prompt in enumerate(prompts):
        where = "prompt" if len(prompts) == 1 else f"prompt[{number}]"
        if isinstance(prompt, str):
            check_text(model.spec, prompt, where)
            num_characters += len(prompt)
        else:
            _check_ids(model.text.vocab_size, prompt, where)
    if template is not None and add_special_tokens:
        raise InvalidRequest(
            "the prefix's template writes its special tokens itself, so none are added: leave "
            "add_special_tokens out, or send raw",
            param="add_special_tokens",
        )
    text, adds = model.text, add_special_tokens is not False

    def encode() -> list[tuple[int, ...]]:
        found = []
        for prompt in prompts:
            if not isinstance(prompt, str):
                ids = prompt
            elif template is None:
                ids = text.encode(prompt, add_special_tokens=adds, parse_special=parse_special)
            else:
                ids = text.render(template, prompt, parse_special=parse_special)
            found.append(tuple(ids) if cut_to is None else _cut(model, ids, cut_to))
        return found

    return await off_loop(pool, tenant, num_characters, encode)


def new_document(model: FrozenModel) -> list[int]:
    """The token ids with which the model begins a text of its own."""
    return model.text.encode("") or sorted(model.text.eos_token_ids)[:1]


def check_text(spec: BaseModelSpec, text: str, where: str = "the prompt") -> None:
    """Refuse text that cannot be encoded or cannot fit, before any work is spent on it."""
    limit = spec.prompt_limit
    if len(text) > limit * MAX_TOKEN_CHARACTERS:
        reads = "context is" if spec.source_limit is None else "encoder reads at most"
        unit = "positions" if spec.source_limit is None else "tokens"
        raise ContextLengthExceeded(
            f"{where} has {len(text)} characters; this model's {reads} {limit} {unit}",
            param="prompt",
        )
    if not text.isascii() and SURROGATE.search(text):
        raise InvalidRequest(f"{where} holds a lone surrogate, which no text has", param="prompt")


def _check_ids(vocabulary: int, ids: Sequence[int], where: str) -> None:
    """Refuse token ids that the model does not have; the engine refuses an empty prompt."""
    if ids and not (min(ids) >= 0 and max(ids) < vocabulary):
        at = next(at for at, token in enumerate(ids) if not 0 <= token < vocabulary)
        wrong = str(ids[at]) if abs(ids[at]) < 10**20 else "a number of many digits"
        raise InvalidRequest(
            f"prompt: token ids of this model are 0 to {vocabulary - 1}; {where}[{at}] is {wrong}",
            param="prompt",
        )


def _shorten(spec: BaseModelSpec, prompt: str | list[int]) -> str | list[int]:
    """The part of a text that a cut can leave, so that the rest costs no work."""
    if not isinstance(prompt, str):
        return prompt
    most = spec.prompt_limit * MAX_TOKEN_CHARACTERS
    return prompt[-most:] if spec.source_limit is None else prompt[:most]


def _cut(model: FrozenModel, ids: Sequence[int], count: int) -> tuple[int, ...]:
    if model.spec.source_limit is None:
        return tuple(ids[-count:])
    return model.text.cut_source(ids, count)


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
