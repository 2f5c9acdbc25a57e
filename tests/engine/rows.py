"""Rows without an engine: for tests of what looks at one row at a time."""

from __future__ import annotations

from collections.abc import Sequence

from app.engine.kv_cache.entries import KVEntry
from app.engine.request import GenerationRequest, SamplingParams
from app.engine.sequence import OutputText, TokenSequence
from app.model.text import Text
from app.prefix.prefix import Prefix
from tests.tiny import train_tokenizer

TEXT = Text(train_tokenizer().backend_tokenizer.to_str(), vocab_size=320, eos_token_ids=[0])


def make_row(
    prompt: Sequence[int] = (1, 2, 3),
    generated: Sequence[int] = (),
    *,
    name: str = "request",
    index: int = 0,
    seed: int = 0,
    max_tokens: int = 50,
    n: int = 1,
    prefixes: Sequence[Prefix] = (),
    segments: Sequence[KVEntry] = (),
    **sampling: object,
) -> TokenSequence:
    """A row that has sampled `generated` after `prompt`."""
    params = SamplingParams(max_tokens, **sampling)
    request = GenerationRequest(name, "demo", tuple(prompt), params, tuple(prefixes), n)
    output = OutputText(index, params, TEXT)
    columns = len(prompt) + max_tokens
    tokens = [*prompt, *generated]
    return TokenSequence(request, index, tokens, columns, seed, output, segments=tuple(segments))
