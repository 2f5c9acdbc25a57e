"""How probable a target is after a prefix, and how far two prefixes are apart over it.

Computed from full logits, one target and `CHUNK` of its tokens at a time, so that memory is
bounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from app.errors import GenerationFault
from app.evaluation.text_pairs import TokenPair
from app.model.dense import dense_logits, dense_pair_logits
from app.model.frozen import FrozenModel
from app.prefix.prefix import Prefix

CHUNK = 128
"""Tokens of a target whose logits are held at the same time."""


@dataclass(frozen=True)
class Contrast:
    """Sums over a target's `num_tokens`, in nats.

    `loss_a` and `loss_b` are negative log-probabilities of the target; `kl_ab` is KL(a‖b) of the
    next-token distributions, `kl_ba` the reverse.
    """

    num_tokens: int
    loss_a: float
    loss_b: float
    kl_ab: float
    kl_ba: float


@torch.inference_mode()
def target_loss(model: FrozenModel, prefix: Prefix | None, pair: TokenPair) -> float:
    """The target's negative log-probability in nats, summed over its tokens.

    GenerationFault if it is not finite.
    """
    parts = zip(_log_probabilities(model, prefix, pair), _targets(model, pair), strict=True)
    return _finite(sum(_loss(logs, targets) for logs, targets in parts))


@torch.inference_mode()
def contrast(
    model: FrozenModel, a: Prefix | None, b: Prefix | None, pair_a: TokenPair, pair_b: TokenPair
) -> Contrast:
    """Two prefixes over one target; the prompts may differ, as their templates may.

    The targets are the same. GenerationFault if a sum is not finite.
    """
    loss_a = loss_b = kl_ab = kl_ba = 0.0
    others = None if _is_same(a, b) and pair_a == pair_b else _log_probabilities(model, b, pair_b)
    parts = zip(_log_probabilities(model, a, pair_a), _targets(model, pair_a), strict=True)
    for logs_a, targets in parts:
        logs_b = logs_a if others is None else next(others)
        loss_a += _loss(logs_a, targets)
        loss_b += _loss(logs_b, targets)
        kl_ab += _divergence(logs_a, logs_b)
        kl_ba += _divergence(logs_b, logs_a)
    sums = (_finite(value) for value in (loss_a, loss_b, kl_ab, kl_ba))
    return Contrast(len(pair_a.target_ids), *sums)


def _is_same(a: Prefix | None, b: Prefix | None) -> bool:
    return (None if a is None else a.digest) == (None if b is None else b.digest)


def _log_probabilities(
    model: FrozenModel, prefix: Prefix | None, pair: TokenPair
) -> Iterator[torch.Tensor]:
    """Log-probabilities [chunk, vocabulary] before each token of the target, chunk by chunk."""
    for start in range(0, len(pair.target_ids), CHUNK):
        end = min(start + CHUNK, len(pair.target_ids))
        logits = _logits(model, prefix, pair, start, end)[0]
        # sums over a vocabulary of differences near 0 need more than single precision
        yield logits.double().log_softmax(dim=-1)


def _logits(
    model: FrozenModel, prefix: Prefix | None, pair: TokenPair, start: int, end: int
) -> torch.Tensor:
    """Logits [1, end - start, vocabulary] from which the target's tokens `start` to `end` came."""
    offset = 0 if prefix is None else prefix.metadata.position_offset
    modules = {} if prefix is None else prefix.modules
    if (first_input := model.generation.frame.start) is not None:
        written = (first_input, *pair.target_ids[: end - 1])
        read = _ids(model, pair.prompt_ids)
        return dense_pair_logits(
            model,
            read,
            torch.ones_like(read, dtype=torch.bool),
            _ids(model, written),
            modules,
            position_offset=offset,
            keep=torch.arange(start, end, device=model.device),
        )
    first = len(pair.prompt_ids) - 1
    seen = (*pair.prompt_ids, *pair.target_ids[: end - 1])
    return dense_logits(
        model,
        _ids(model, seen),
        modules.get("decoder"),
        position_offset=offset,
        keep=torch.arange(first + start, first + end, device=model.device),
    )


def _targets(model: FrozenModel, pair: TokenPair) -> tuple[torch.Tensor, ...]:
    return torch.split(torch.tensor(pair.target_ids, device=model.device), CHUNK)


def _ids(model: FrozenModel, token_ids: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor([token_ids], device=model.device)


def _loss(logs: torch.Tensor, targets: torch.Tensor) -> float:
    return -float(logs.gather(1, targets[:, None]).sum())


def _divergence(logs: torch.Tensor, others: torch.Tensor) -> float:
    """Never below 0, which it can be by rounding alone."""
    return max(0.0, _finite(float((logs.exp() * (logs - others)).sum())))


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise GenerationFault("the model's probabilities of the target are not finite")
    return value
