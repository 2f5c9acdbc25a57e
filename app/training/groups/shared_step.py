"""Steps of several runs, computed in passes that they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch

from app.evaluation.text_pairs import TokenPair
from app.model.frozen import FrozenModel
from app.prefix.prefix import KeyValues
from app.training.layer_checkpoints import checkpointed_layers
from app.training.objective import PrefixedRows, losses_of


class SharedStep:
    """One run's part of shared passes: its rows, its loss, and the way back to its parameters.

    The passes see a copy of the prefix that ends their gradients; `finish` takes these further into
    the run's parameters. So what is not finite in one run stays there. `recompute`: with gradient
    checkpointing.
    """

    def __init__(self, rows: PrefixedRows, *, recompute: bool = False) -> None:
        self._rows, self.recompute = rows, recompute
        self._copies = {
            name: KeyValues(part.keys.detach(), part.values.detach())
            for name, part in rows.prefix.items()
        }
        self._loss = 0.0
        for made, copy in self._tensors():
            copy.requires_grad_(made.requires_grad)

    @property
    def pairs(self) -> Sequence[TokenPair]:
        """All pairs of the step."""
        return self._rows.pairs

    def part(self, pairs: Sequence[TokenPair]) -> PrefixedRows:
        """Some of the pairs, as rows of one pass; their losses add up to the step's loss."""
        return replace(self._rows, prefix=self._copies, pairs=pairs)

    def add_loss(self, loss: float) -> None:
        """Add the loss of a part."""
        self._loss += loss

    def finish(self) -> float:
        """Bring the gradients of all passes into the run's parameters; return the step's loss."""
        found = [(made, copy.grad) for made, copy in self._tensors() if copy.grad is not None]
        torch.autograd.backward([made for made, _ in found], [slopes for _, slopes in found])
        return self._loss

    def _tensors(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for name, made in self._rows.prefix.items():
            yield made.keys, self._copies[name].keys
            yield made.values, self._copies[name].values


def compute_together(
    model: FrozenModel,
    steps: Sequence[SharedStep],
    max_tokens: int,
    between: Callable[[], None] = lambda: None,
) -> None:
    """The losses of all steps and the gradients of their prefixes, in as few passes as fit.

    `between` is called before each pass; what it raises ends the work.
    """
    for recompute in (False, True):
        alike = [step for step in steps if step.recompute == recompute]
        for chosen in _passes(alike, max_tokens):
            between()
            parts = [step.part(pairs) for step, pairs in chosen]
            with checkpointed_layers(model) if recompute else nullcontext():
                losses = losses_of(model, parts)
                torch.autograd.backward(losses.sum())
            for (step, _), loss in zip(chosen, losses.tolist(), strict=True):
                step.add_loss(loss)


def _passes(
    steps: Sequence[SharedStep], max_tokens: int
) -> Iterator[list[tuple[SharedStep, list[TokenPair]]]]:
    """The rows of all steps in parts of up to `max_tokens` tokens, rows of like length together."""
    rows = [(number, pair) for number, step in enumerate(steps) for pair in step.pairs]
    rows.sort(key=lambda row: len(row[1]))
    first, tokens = 0, 0
    for place, (_, pair) in enumerate(rows):
        if tokens and tokens + len(pair) > max_tokens:
            yield _by_step(steps, rows[first:place])
            first, tokens = place, 0
        tokens += len(pair)
    if rows:
        yield _by_step(steps, rows[first:])


def _by_step(
    steps: Sequence[SharedStep], rows: Sequence[tuple[int, TokenPair]]
) -> list[tuple[SharedStep, list[TokenPair]]]:
    found: dict[int, list[TokenPair]] = {}
    for number, pair in sorted(rows, key=lambda row: row[0]):
        found.setdefault(number, []).append(pair)
    return [(steps[number], pairs) for number, pairs in found.items()]
