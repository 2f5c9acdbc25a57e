"""What plain transformers says of versions: losses, divergences, tokens of inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from app.prefix.prefix import Prefix
from tests.equivalence.bart_reference import decoder_logits, plain_bart
from tests.equivalence.reference import greedy_logits, plain_model

BART_START, BART_END = 0, 2
"""`<s>` and `</s>`, between which BART's texts stand."""


def prompt_ids(folder: Path, prefix: Prefix, text: str) -> list[int]:
    """A prompt's tokens, the template's special tokens being special."""
    template = prefix.metadata.input_template or "{input}"
    return _tokenizer(folder).encode(
        template.replace("{input}", text), add_special_tokens=prefix.metadata.input_template is None
    )


def target_ids(folder: Path, text: str) -> list[int]:
    """GPT-2's target as the authors train it: a space on both sides, then the end of the text."""
    tokenizer = _tokenizer(folder)
    return [*tokenizer.encode(f" {text} "), tokenizer.eos_token_id]


def bart_ids(folder: Path, text: str) -> list[int]:
    """BART's target, framed as any text."""
    return [int(token) for token in _tokenizer(folder).encode(text)]


def log_probabilities(
    folder: Path,
    prefix: Prefix,
    prompt: Sequence[int],
    target: Sequence[int],
    *,
    bart: bool = False,
) -> torch.Tensor:
    """[target tokens, vocabulary] before each token of the target, in double precision."""
    if bart:
        logits = decoder_logits(plain_bart(folder), [prefix], prompt, target)
    else:
        logits = greedy_logits(plain_model(folder), [prefix], prompt, target)
    return logits.double().log_softmax(-1)


def summed_loss(logs: torch.Tensor, target: Sequence[int]) -> float:
    """The target's negative log-probability in nats."""
    return -sum(float(row[token]) for row, token in zip(logs, target, strict=True))


def divergence(logs: torch.Tensor, others: torch.Tensor) -> float:
    """The mean of KL(logs‖others) over the rows."""
    return float(torch.nn.functional.kl_div(others, logs, reduction="batchmean", log_target=True))


def _tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(folder)
