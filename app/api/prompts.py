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
    services: Services, choice: Choice, prompt: str | list[int], *, raw: bool
) -> tuple[int, ...]:
    """Token ids of one prompt: a text goes through the prefix's template unless `raw`."""
    if not isinstance(prompt, str):
        return tuple(prompt)
    check_text(services, prompt)
    template = None if raw else choice.template
    if len(prompt) < _LONG_TEXT:
        return _encode(services, template, prompt)
    return await asyncio.to_thread(_encode, services, template, prompt)


def check_text(services: Services, text: str) -> None:
    """Refuse text that cannot be encoded or cannot fit, before any work is spent on it."""
    limit = services.model.spec.context_limit * _BYTES_PER_TOKEN
    if len(text) > limit:
        raise ContextLengthExceeded(
            f"the prompt has {len(text)} characters; this model's context is "
            f"{services.model.spec.context_limit} positions",
            param="prompt",
        )
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidRequest("the prompt holds a lone surrogate", param="prompt")


def _encode(services: Services, template: str | None, prompt: str) -> tuple[int, ...]:
    text = services.model.text
    return tuple(text.encode(prompt) if template is None else text.render(template, prompt))
