"""From a request's prompt to token ids: templates, limits before work, long texts off the loop."""

from __future__ import annotations

import asyncio

from app.api.choosing import Choice
from app.api.services import Services
from app.errors import ContextLengthExceeded, InvalidRequest

_BYTES_PER_TOKEN = 128
"""No token of a byte-level vocabulary is longer; a text beyond limit × this cannot fit."""

_LONG_TEXT = 2000
"""Characters from which encoding is worth a thread of its own."""


async def encode_prompt(
    services: Services,
    choice: Choice,
    prompt: str | list[int],
    *,
    raw: bool,
    cut_to: int | None = None,
) -> tuple[int, ...]:
    """Token ids of one prompt: a text goes through the prefix's template unless `raw`.

    No more than `cut_to` tokens are left: of what an encoder reads the first ones and the
    end-of-text token behind them, of any other prompt the last ones.
    """
    if not isinstance(prompt, str):
        return _cut(services, tuple(prompt), cut_to)
    if cut_to is not None:
        prompt = _cut_text(services, prompt)
    check_text(services, prompt)
    template = None if raw else choice.template
    if len(prompt) < _LONG_TEXT:
        ids = _encode(services, template, prompt)
    else:
        ids = await asyncio.to_thread(_encode, services, template, prompt)
    return _cut(services, ids, cut_to)


def check_text(services: Services, text: str) -> None:
    """Refuse text that cannot be encoded or cannot fit, before any work is spent on it."""
    spec = services.model.spec
    if len(text) > _max_characters(services):
        reads = "context is" if spec.source_limit is None else "encoder reads at most"
        unit = "positions" if spec.source_limit is None else "tokens"
        raise ContextLengthExceeded(
            f"the prompt has {len(text)} characters; this model's {reads} {spec.prompt_limit} "
            f"{unit}",
            param="prompt",
        )
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidRequest("the prompt holds a lone surrogate", param="prompt")


def _max_characters(services: Services) -> int:
    return services.model.spec.prompt_limit * _BYTES_PER_TOKEN


def _cut_text(services: Services, text: str) -> str:
    """The part of a text that a cut may leave something of: no work is spent on the rest."""
    most = _max_characters(services)
    return text[-most:] if services.model.spec.source_limit is None else text[:most]


def _cut(services: Services, ids: tuple[int, ...], count: int | None) -> tuple[int, ...]:
    if services.model.spec.source_limit is not None:
        return services.model.text.cut_source(ids, count)
    return ids if count is None else ids[-count:]


def _encode(services: Services, template: str | None, prompt: str) -> tuple[int, ...]:
    text = services.model.text
    return tuple(text.encode(prompt) if template is None else text.render(template, prompt))
