"""Training and evaluation data: JSON lines with `input` and `target`, checked line by line.

Token ids come from the model's `Text`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.errors import InvalidRequest
from app.model.text import INPUT_PLACEHOLDER, Text
from app.prefix.strict_json import parse_object

_SPACED = " {input} "
"""How Li & Liang (2021) present an input to GPT-2, and a target; `<|endoftext|>` follows both."""
_PROBE = "a"

_TARGETS = ("target", "targets", "output", "outputs")
"""What targets are called: the first two, and the same two in the words of `/evaluate`."""
_BOM = b"\xef\xbb\xbf"

MAX_LINES = 1_000_000
MAX_LINE_BYTES = 1 << 20
MAX_TARGETS = 1_000


@dataclass(frozen=True)
class Example:
    """An input and all the targets that are right for it; `line` says where it stands."""

    input: str
    targets: tuple[str, ...]
    line: int


@dataclass(frozen=True)
class TokenPair:
    """One input with one target as token ids; the target ends with the end-of-text token.

    Where the model has an encoder, that reads `prompt_ids`.
    """

    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.target_ids)


def read_examples(path: Path) -> list[Example]:
    """All examples of a file. InvalidRequest names file and line of what is wrong."""
    examples = list(_examples(path))
    if not examples:
        raise InvalidRequest(f"{path}: there is no example in it")
    return examples


def data_digest(path: Path) -> str:
    """SHA-256, hex, of the file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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


def _examples(path: Path) -> Iterator[Example]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(_bounded_lines(file, path), start=1):
                if number == 1:
                    line = line.removeprefix(_BOM)
                if line.strip():
                    yield _example(line, number, path)
    except OSError as error:
        raise InvalidRequest(f"{path}: cannot be read: {error.strerror}") from error


def _bounded_lines(file: Any, path: Path) -> Iterator[bytes]:
    for number in range(1, MAX_LINES + 2):
        line: bytes = file.readline(MAX_LINE_BYTES + 1)
        if not line:
            return
        if len(line) > MAX_LINE_BYTES:
            raise InvalidRequest(f"{path}:{number}: the line is longer than {MAX_LINE_BYTES} bytes")
        if number > MAX_LINES:
            raise InvalidRequest(f"{path}: more than {MAX_LINES} lines")
        yield line


def _example(line: bytes, number: int, path: Path) -> Example:
    where = f"{path}:{number}"
    try:
        record = parse_object(line.decode("utf-8"), floats=True)
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"{where}: not UTF-8 at byte {error.start + 1} of the line; save the file as UTF-8"
        ) from error
    except ValueError as error:
        raise InvalidRequest(f"{where}: the line {error}") from error
    source = record.get("input")
    if not isinstance(source, str) or not source.strip():
        raise InvalidRequest(f"{where}: `input` must be a text that is not empty")
    return Example(source, _targets(record, where), number)


def _targets(record: dict[str, Any], where: str) -> tuple[str, ...]:
    given = [name for name in _TARGETS if name in record]
    if len(given) != 1:
        found = f", not both `{given[0]}` and `{given[1]}`" if given else ""
        raise InvalidRequest(
            f"{where}: give `target` (a text; `output` is the same) or `targets` (a list){found}"
        )
    (name,) = given
    targets = record[name] if name.endswith("s") else [record[name]]
    if not isinstance(targets, list) or not 0 < len(targets) <= MAX_TARGETS:
        raise InvalidRequest(f"{where}: `{name}` must be a list of 1 to {MAX_TARGETS} texts")
    if not all(isinstance(target, str) and target.strip() for target in targets):
        raise InvalidRequest(f"{where}: `{name}`: every target must be a text that is not empty")
    return tuple(target.strip() for target in targets)
