"""Examples as token ids: how a prompt presents an input, and how a target ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from app.datasets.example import Example
from app.errors import InvalidRequest
from app.model.frozen import FrozenModel
from app.model.text import INPUT_PLACEHOLDER, Text

_SPACED = " {input} "
"""How Li & Liang (2021) present an input to GPT-2, and a target; `<|endoftext|>` follows both."""
_PROBE = "a"


@dataclass(frozen=True)
class TokenPair:
    """One input with one target as token ids; the target ends with the end-of-text token.

    Where the model has an encoder, that reads `prompt_ids`.
    """

    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.target_ids)


def token_pairs(
    examples: Sequence[Example], text: Text, template: str, *, room: int, source: str
) -> list[TokenPair]:
    """One pair per target, in order.

    `room` is the number of positions that prompt and target may take together: InvalidRequest
    names `source` and the line of an example that does not fit.
    """
    pairs = []
    for example in examples:
        with _at_line(source, example):
            prompt = tuple(text.render(template, example.input))
            written = [continued_target(text, target) for target in example.targets]
        for target_ids in written:
            pair = TokenPair(prompt, target_ids)
            if len(pair) > room:
                raise InvalidRequest(
                    f"{source}:{example.line}: input and target take {len(pair)} tokens, but the"
                    f" prefix leaves room for {room}"
                )
            pairs.append(pair)
    return pairs


def default_template(text: Text, *, has_encoder: bool) -> str:
    """How an input is presented if nobody says so, in this tokenizer's own special tokens.

    An encoder reads what it always does. Without one it is the authors' form: for GPT-2
    ` {input} <|endoftext|>`, for Llama 2 `<s>{input}</s>`.
    """
    before, after = _frame(text)
    if has_encoder:
        return before + INPUT_PLACEHOLDER + after
    end = text.special_text(text.end_id) or text.facts.eos or "\n"
    return before + _spaced(text) + end


def _frame(text: Text) -> tuple[str, str]:
    """The special tokens that the tokenizer puts before and behind every text."""
    framed, bare = text.encode(_PROBE), text.render(INPUT_PLACEHOLDER, _PROBE)
    start = next(
        (at for at in range(len(framed)) if framed[at : at + len(bare)] == bare), len(framed)
    )
    before, after = framed[:start], framed[start + len(bare) :]
    return "".join(map(text.token_text, before)), "".join(map(text.token_text, after))


def _spaced(text: Text) -> str:
    """The place of a text between special tokens: no blank where the tokenizer adds its own."""
    return INPUT_PLACEHOLDER if text.doubles_blanks else _SPACED


def source_pairs(
    examples: Sequence[Example],
    text: Text,
    template: str,
    *,
    source_room: int,
    target_room: int,
    first: int | None,
    source: str,
) -> list[TokenPair]:
    """One pair per target for a model with an encoder, in order.

    Targets are those of `answered_target`. Sources are cut to `source_room` tokens; a target that
    takes more than `target_room` is an InvalidRequest that names `source` and the line.
    """
    pairs = []
    for example in examples:
        with _at_line(source, example):
            read = text.cut_source(text.render(template, example.input), source_room)
            targets = [answered_target(text, target, first) for target in example.targets]
        for written in targets:
            if len(written) > target_room:
                raise InvalidRequest(
                    f"{source}:{example.line}: a target takes {len(written)} tokens, but the"
                    f" decoder has room for {target_room}"
                )
            pairs.append(TokenPair(read, written))
    return pairs


def continued_target(text: Text, target: str) -> tuple[int, ...]:
    """What a decoder writes after its prompt, as the authors train GPT-2; it ends itself.

    InvalidRequest if the model names no end-of-text token.
    """
    return (*text.render(_spaced(text), target), _end_of_text(text))


def answered_target(text: Text, target: str, first: int | None) -> tuple[int, ...]:
    """What a decoder writes about a source, framed as the tokenizer frames any text.

    It begins with `first` if the model's outputs are made to, and ends with the end-of-text token:
    BART's are `<s> … </s>`, which is what the authors train on. InvalidRequest as above.
    """
    end_id = _end_of_text(text)
    written = text.encode(target)
    if first is not None and written[:1] != [first]:
        written.insert(0, first)
    if written[-1] not in text.eos_token_ids:
        written.append(end_id)
    return tuple(written)


def written_target(model: FrozenModel, target: str) -> tuple[int, ...]:
    """A target as `model` is trained to write it: after its prompt, or about its source."""
    if model.encoder_decoder is None:
        return continued_target(model.text, target)
    return answered_target(model.text, target, model.generation.frame.forced_first)


def _end_of_text(text: Text) -> int:
    if text.end_id is None:
        raise InvalidRequest("the base model names no end-of-text token; targets could not end")
    return text.end_id


@contextmanager
def _at_line(source: str, example: Example) -> Iterator[None]:
    """An InvalidRequest within the block says which line it is about."""
    try:
        yield
    except InvalidRequest as error:
        raise InvalidRequest(f"{source}:{example.line}: {error.message}") from error
