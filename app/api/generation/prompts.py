"""From a request's prompts to token ids: templates, limits before work, long texts off the loop."""

from __future__ import annotations

import re
from collections.abc import Sequence

from app.api.generation.prefix_selection import PrefixSelection
from app.api.services import Services
from app.api.side_work.off_loop import off_loop
from app.errors import ContextLengthExceeded, InvalidRequest

_BYTES_PER_TOKEN = 128
"""No token of a byte-level vocabulary is longer; a text beyond limit × this cannot fit."""

_SURROGATE = re.compile("[\ud800-\udfff]")


async def encode_prompts(
    services: Services,
    tenant: str,
    choice: PrefixSelection,
    prompts: Sequence[str | list[int]],
    *,
    raw: bool,
    cut_to: int | None = None,
    add_special_tokens: bool | None = None,
    parse_special: bool = False,
) -> list[tuple[int, ...]]:
    """Token ids of each prompt: a text goes through the prefix's template unless `raw`.

    Without a template the tokenizer's own special tokens are added unless `add_special_tokens` is
    False; those that the text spells are parsed with `parse_special` alone.

    All are encoded in one turn, off the event loop unless they are short together. Of each no more
    than `cut_to` tokens are left: of what an encoder reads the first ones and the end-of-text token
    behind them, of any other prompt the last ones.

    Raises InvalidRequest before any work for what cannot be encoded or cannot fit.
    """
    shortened = [_shorten(services, prompt, cut_to) for prompt in prompts]
    for number, prompt in enumerate(shortened):
        where = "prompt" if len(prompts) == 1 else f"prompt[{number}]"
        if isinstance(prompt, str):
            check_text(services, prompt, where)
        else:
            _check_ids(services, prompt, where)
    template = None if raw else choice.template
    if template is not None and add_special_tokens:
        raise InvalidRequest(
            "the prefix's template writes its special tokens itself, so none are added: leave "
            "add_special_tokens out, or send raw",
            param="add_special_tokens",
        )
    text, adds = services.model.text, add_special_tokens is not False

    def encode() -> list[tuple[int, ...]]:
        found = []
        for prompt in shortened:
            if not isinstance(prompt, str):
                ids = prompt
            elif template is None:
                ids = text.encode(prompt, add_special_tokens=adds, parse_special=parse_special)
            else:
                ids = text.render(template, prompt, parse_special=parse_special)
            found.append(_cut(services, tuple(ids), cut_to))
        return found

    num_characters = sum(len(prompt) for prompt in shortened if isinstance(prompt, str))
    return await off_loop(services, tenant, num_characters, encode)


def new_document(services: Services) -> list[int]:
    """The token ids with which the model begins a text of its own."""
    text = services.model.text
    return text.encode("") or sorted(text.eos_token_ids)[:1]


def check_text(services: Services, text: str, where: str = "the prompt") -> None:
    """Refuse text that cannot be encoded or cannot fit, before any work is spent on it."""
    spec = services.model.spec
    if len(text) > _max_characters(services):
        reads = "context is" if spec.source_limit is None else "encoder reads at most"
        unit = "positions" if spec.source_limit is None else "tokens"
        raise ContextLengthExceeded(
            f"{where} has {len(text)} characters; this model's {reads} {spec.prompt_limit} {unit}",
            param="prompt",
        )
    if has_surrogate(text):
        raise InvalidRequest(f"{where} holds a lone surrogate, which no text has", param="prompt")


def has_surrogate(text: str) -> bool:
    """Whether the text holds half a character, which cannot be encoded."""
    return not text.isascii() and _SURROGATE.search(text) is not None


def _check_ids(services: Services, ids: Sequence[int], where: str) -> None:
    """Refuse token ids that the model has not; an empty prompt is refused by the engine."""
    vocabulary = services.model.text.vocab_size
    if ids and not (min(ids) >= 0 and max(ids) < vocabulary):
        at = next(at for at, token in enumerate(ids) if not 0 <= token < vocabulary)
        wrong = str(ids[at]) if abs(ids[at]) < 10**20 else "a number of many digits"
        raise InvalidRequest(
            f"prompt: token ids of this model are 0 to {vocabulary - 1}; {where}[{at}] is {wrong}",
            param="prompt",
        )


def _max_characters(services: Services) -> int:
    return services.model.spec.prompt_limit * _BYTES_PER_TOKEN


def _shorten(services: Services, prompt: str | list[int], cut_to: int | None) -> str | list[int]:
    """The part of a text that a cut may leave something of: no work is spent on the rest."""
    if cut_to is None or not isinstance(prompt, str):
        return prompt
    most = _max_characters(services)
    return prompt[-most:] if services.model.spec.source_limit is None else prompt[:most]


def _cut(services: Services, ids: tuple[int, ...], count: int | None) -> tuple[int, ...]:
    if services.model.spec.source_limit is not None:
        return services.model.text.cut_source(ids, count)
    return ids if count is None else ids[-count:]
