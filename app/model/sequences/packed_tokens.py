"""Forward passes over sequences that lie end to end, without padding between them: training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from app.errors import UnsupportedModel
from app.model.frozen import FrozenModel
from app.model.packed import padded_rows
from app.model.sequences.row_prefix_plan import Spans
from app.model.sequences.sequence_plan import SequencePlan
from app.prefix.prefix import KeyValues


@dataclass(frozen=True)
class PackedTokens:
    """Sequences end to end: `ids` and `positions`, [1, tokens], and the sequences' `lengths`.

    A few tokens without meaning may follow the last sequence, so that fewer row counts occur.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    lengths: tuple[int, ...]


def pack_tokens(
    sequences: Sequence[Sequence[int]],
    *,
    position_offset: int | Sequence[int] = 0,
    device: torch.device | None = None,
) -> PackedTokens:
    """Lay `sequences` end to end; each one's positions count from `position_offset`.

    That is one number, or one for each sequence. It is fastest if sequences of equal length are
    neighbours.
    """
    lengths = tuple(len(sequence) for sequence in sequences)
    ids = [token for sequence in sequences for token in sequence]
    offsets = (
        [position_offset] * len(lengths) if isinstance(position_offset, int) else position_offset
    )
    positions = [
        offset + place
        for offset, length in zip(offsets, lengths, strict=True)
        for place in range(length)
    ]
    tail = [0] * (padded_rows(len(ids)) - len(ids))
    made = torch.tensor([ids + tail, positions + tail], device=device)
    return PackedTokens(made[:1], made[1:], lengths)


def packed_logits(
    model: FrozenModel,
    tokens: PackedTokens,
    modules: Mapping[str, KeyValues],
    keep: torch.Tensor | int = 0,
    *,
    sources: PackedTokens | None = None,
    spans: Spans | None = None,
) -> torch.Tensor:
    """Logits [1, kept tokens, vocabulary] of each sequence behind the prefixes in `modules`.

    `modules` maps roles to keys and values [layers, kv_heads, length, head_dim], of any dtype, that
    all sequences attend to; gradients flow into them. With `spans` a sequence attends only to its
    own range of positions, by role. `keep` holds the indices of the tokens whose
    logits are wanted (0: all of them). A model with an encoder reads `sources`, one for each
    sequence; without an encoder they must be None, or UnsupportedModel is raised.
    """
    if (model.encoder_decoder is None) != (sources is None):
        raise UnsupportedModel(
            f"base model of type {model.family!r} "
            + ("has no encoder" if sources is not None else "needs sources for its encoder")
        )
    plan = SequencePlan(
        modules,
        tokens.lengths,
        () if sources is None else sources.lengths,
        spans=spans,
        dropout=model.attention_dropout,
    )
    if model.encoder_decoder is None or sources is None:
        return model.forward(tokens.ids, tokens.positions, plan, keep)
    return model.encoder_decoder.teach_at(
        (sources.ids, sources.positions), (tokens.ids, tokens.positions), plan, keep
    )
