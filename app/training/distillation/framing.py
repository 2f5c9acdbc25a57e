"""How a model reads a text and a question about it: the templates of teacher and student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.errors import InvalidRequest
from app.model.text import INPUT_PLACEHOLDER, Text

_CHAT_START = "<|im_start|>"


@dataclass(frozen=True)
class Framing:
    """The teacher reads `context` with the text in it, then `prompt` with the question in it.

    The student reads the same prompt behind its prefix, so `prompt` is the prefix's template.
    `chat`: whether the model answers instructions.
    """

    context: str
    prompt: str
    chat: bool

    def context_ids(self, encoder: Text, part: Sequence[int]) -> tuple[int, ...]:
        """The tokens of the context around the tokens of a part."""
        before, after = self.frame_ids(encoder)
        return (*before, *part, *after)

    def frame_ids(self, encoder: Text) -> tuple[list[int], list[int]]:
        """The tokens before and behind a text. Raises InvalidRequest for a wrong template."""
        before, placeholder, after = self.context.partition(INPUT_PLACEHOLDER)
        if not placeholder:
            raise InvalidRequest(f"the context template must contain {INPUT_PLACEHOLDER}")
        return (
            encoder.render(before + INPUT_PLACEHOLDER, ""),
            encoder.render(INPUT_PLACEHOLDER + after, ""),
        )


def framing_of(encoder: Text, prompt: str | None = None, context: str | None = None) -> Framing:
    """The framing for a model with this tokenizer; `prompt` and `context` replace its templates.

    A tokenizer with `<|im_start|>` has the ChatML form: the text is the system's message. Other
    models read the text, an empty line and the prompt.
    """
    chat = _CHAT_START in (encoder.special_text(each) for each in encoder.special_ids)
    if chat:
        usual = Framing(
            f"{_CHAT_START}system\n{INPUT_PLACEHOLDER}<|im_end|>\n",
            f"{_CHAT_START}user\n{INPUT_PLACEHOLDER}<|im_end|>\n{_CHAT_START}assistant\n",
            chat,
        )
    else:
        usual = Framing(f"{_beginning(encoder)}{INPUT_PLACEHOLDER}\n\n", INPUT_PLACEHOLDER, chat)
    return Framing(context or usual.context, prompt or usual.prompt, chat)


def _beginning(encoder: Text) -> str:
    """The special token that the tokenizer puts before every text, if any."""
    ids = encoder.encode("a")
    first = encoder.special_text(ids[0]) if ids else None
    return first or ""
