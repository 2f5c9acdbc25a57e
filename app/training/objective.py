"""The training objective by model family: the loss of a batch, and the positions of its tokens.

GPT-2 continues the input, at positions after the prefix. BART reads the input with its encoder and
writes the target, with positions from 0 on both sides (Li & Liang 2021, and their code).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from app.evaluation.text_pairs import TokenPair
from app.model.frozen import FrozenModel
from app.model.sequences.packed_tokens import packed_logits
from app.model.sequences.row_prefix_plan import Spans
from app.prefix.composition import compose_modules
from app.prefix.prefix import KeyValues, Prefix
from app.prefix.spec import MODULES
from app.training.batches import (
    IGNORED,
    by_length,
    by_source_length,
    collate,
    collate_sources,
)
from app.training.cross_entropy import row_cross_entropy

_ROWS_AT_ONCE = 32
"""Of validation pairs."""


@dataclass(frozen=True)
class Loss:
    """A mean loss with gradients, and how many sentences (GPT-2) or tokens (BART) it covers."""

    mean: torch.Tensor
    count: int


@dataclass(frozen=True)
class PrefixedRows:
    """Pairs behind one prefix, and how their losses make one: the sum over `divisor`.

    `prefix` maps modules to keys and values of any dtype, best fp32; an empty one means the base
    model alone. The decoder's tokens have positions from `position_offset` on. `label_smoothing` is
    the share of a target that is spread over the vocabulary.
    """

    prefix: Mapping[str, KeyValues]
    pairs: Sequence[TokenPair]
    position_offset: int
    divisor: int
    label_smoothing: float = 0.0


def loss_of(
    model: FrozenModel,
    prefix: Mapping[str, KeyValues],
    pairs: Sequence[TokenPair],
    *,
    on: Prefix | None = None,
    label_smoothing: float = 0.0,
) -> Loss:
    """The loss of the rows that `prefixed_rows` makes, with gradients into the prefix."""
    rows = prefixed_rows(model, prefix, pairs, on=on, label_smoothing=label_smoothing)
    return Loss(losses_of(model, [rows])[0], rows.divisor)


def prefixed_rows(
    model: FrozenModel,
    prefix: Mapping[str, KeyValues],
    pairs: Sequence[TokenPair],
    *,
    on: Prefix | None = None,
    label_smoothing: float = 0.0,
) -> PrefixedRows:
    """Rows whose loss is the mean over sentences, or over tokens if the model has an encoder.

    `on` is a frozen prefix on the model's device that stands before `prefix`, as in a composition.
    """
    offset = offset_behind(model, on, prefix["decoder"].length if "decoder" in prefix else 0)
    modules = prefix if on is None else compose_modules(on.modules, prefix)
    by_token = model.encoder_decoder is not None
    count = sum(len(pair.target_ids) for pair in pairs) if by_token else len(pairs)
    return PrefixedRows(modules, pairs, offset, count, label_smoothing)


def losses_of(model: FrozenModel, parts: Sequence[PrefixedRows]) -> torch.Tensor:
    """The loss of each part, [parts], in one pass; gradients flow into each part's prefix.

    Logits are computed at target tokens only. Nothing of one part enters the loss or the gradients
    of another, except by rounding.
    """
    start, device = model.generation.frame.start, model.device
    key = by_length if start is None else by_source_length
    rows = [(part, pair) for part, rows in enumerate(parts) for pair in rows.pairs]
    lengths = [_length(part.prefix) for part in parts]
    rows.sort(key=lambda row: (*key(row[1]), lengths[row[0]]))
    owners, pairs = [part for part, _ in rows], [pair for _, pair in rows]
    offsets = [parts[owner].position_offset for owner in owners]
    if start is not None:
        batch = collate_sources(pairs, start, position_offset=offsets, device=device)
    else:
        batch = collate(pairs, position_offset=offsets, device=device)
    modules, spans = _side_by_side(parts, owners)
    logits = packed_logits(
        model, batch.tokens, modules, batch.keep, sources=batch.sources, spans=spans
    )
    return _losses(
        logits.squeeze(0), batch.labels, parts, [(o, len(p.target_ids)) for o, p in rows]
    )


def _length(prefix: Mapping[str, KeyValues]) -> int:
    return max((part.length for part in prefix.values()), default=0)


def _side_by_side(
    parts: Sequence[PrefixedRows], owners: Sequence[int]
) -> tuple[Mapping[str, KeyValues], Spans | None]:
    """The prefixes of all parts one after another, and where that of each row lies.

    One prefix for all rows needs no places.
    """
    if len(parts) == 1:
        return parts[0].prefix, None
    modules, spans = {}, {}
    for role in MODULES:
        found = [part.prefix.get(role) for part in parts]
        given = [made for made in found if made is not None]
        if given:
            modules[role] = KeyValues(
                torch.cat([made.keys for made in given], dim=2),
                torch.cat([made.values for made in given], dim=2),
            )
            ends = list(accumulate(0 if made is None else made.length for made in found))
            starts = [0, *ends[:-1]]
            spans[role] = [range(starts[owner], ends[owner]) for owner in owners]
    return modules, spans


def _losses(
    logits: torch.Tensor,
    labels: torch.Tensor,
    parts: Sequence[PrefixedRows],
    targets: Sequence[tuple[int, int]],
) -> torch.Tensor:
    """The loss of each part; `targets` are each row's part and its number of labels, in order."""
    owners = torch.zeros(len(labels), dtype=torch.long)
    places = [part for part, count in targets for _ in range(count)]
    owners[: len(places)] = torch.tensor(places)
    owners = owners.to(logits.device)

    def of_owner(values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=logits.device)[owners]

    weights = (labels != IGNORED) / of_owner([part.divisor for part in parts])
    shares = [part.label_smoothing for part in parts]
    losses = row_cross_entropy(logits, labels, weights, of_owner(shares) if any(shares) else None)
    return losses.new_zeros(len(parts)).index_add(0, owners, losses)


def mean_loss(
    loss_of_rows: Callable[[Sequence[TokenPair]], Loss],
    pairs: Sequence[TokenPair],
    between: Callable[[], None] = lambda: None,
) -> float:
    """The mean loss over `pairs`, computed for a few at a time, with a call of `between` before."""
    ordered = sorted(pairs, key=len)
    total, count = 0.0, 0
    for start in range(0, len(ordered), _ROWS_AT_ONCE):
        between()
        part = loss_of_rows(ordered[start : start + _ROWS_AT_ONCE])
        total += part.mean.item() * part.count
        count += part.count
    return total / count


@torch.no_grad()
def target_losses(model: FrozenModel, prefix: Prefix, pairs: Sequence[TokenPair]) -> list[float]:
    """The negative log-probability of each pair's target in nats, summed over its tokens."""
    ordered = sorted(range(len(pairs)), key=lambda at: len(pairs[at]))
    offset, found = prefix.metadata.position_offset, [0.0] * len(pairs)
    for start in range(0, len(ordered), _ROWS_AT_ONCE):
        places = ordered[start : start + _ROWS_AT_ONCE]
        rows = [PrefixedRows(prefix.modules, [pairs[at]], offset, divisor=1) for at in places]
        for at, loss in zip(places, losses_of(model, rows).tolist(), strict=True):
            found[at] = loss
    return found


def position_offset(model: FrozenModel, length: int) -> int:
    """How many positions a prefix of `length` shifts the tokens, as in the authors' code."""
    return length if model.encoder_decoder is None else 0


def offset_behind(model: FrozenModel, on: Prefix | None, length: int) -> int:
    """Position of the first token behind the prefix `on`, if any, and a prefix of `length`."""
    return position_offset(model, length) + (0 if on is None else on.metadata.position_offset)
