"""From a request's prompts to token ids: templates, limits before work, long texts off the loop."""

from __future__ import annotations

import re
from collections.abc import Sequence

from app.api.side_work.off_loop import off_loop
from app.errors import ContextLengthExceeded, InvalidRequest
from app.model.frozen import FrozenModel
from app.prefix.spec import BaseModelSpec
from app.runtime.workers import WorkerPool

MAX_TOKEN_CHARACTERS = 128
"""No token of a byte-level vocabulary is longer; a text beyond limit × this cannot fit."""

SURROGATE = re.compile("[\ud800-\udfff]")
"""Half a character, which cannot be encoded."""


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
