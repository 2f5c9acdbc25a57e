"""Groups of a step's tokens that attend together: neighbouring slots of one length class.

A group is one call on a view of the pool. Where rows attend to their own columns, a slot has the
tokens of its row's chunk; where rows share a segment, its slot has the tokens of them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from app.engine.attention.backends import FUSED, Attention, attend_with_weight
from app.engine.attention.padding import lay_out
from app.engine.kv_cache.entries import KVEntry
from app.engine.kv_cache.pool import KVPool
from app.engine.kv_cache.slots import slot_of

_MAX_PADDING = 2
_MAX_SHARED_PADDING = 16
"""Slots share a group while the most tokens are at most this many times the fewest; where they
share a segment, reading its columns costs more than the padding."""


@dataclass(frozen=True)
class Share:
    """Tokens of the step that attend to `occupant`.

    `starts` is the number of columns before the first token's own where the tokens are the
    occupant's own chunk, and causal; None where they see all its columns.
    """

    occupant: KVEntry
    tokens: Sequence[int]
    starts: int | None = None
    joined: bool = False
    """Whether the tokens attend to other segments as well."""


@dataclass(frozen=True)
class Group:
    """Shares at neighbouring slots of one class, attended to together.

    `mask` is additive, [slots, 1, padded tokens or 1, columns]. `gather` [slots, padded] names the
    token for each place, or is the slice of tokens that fill all places in order; `places` are the
    flat places that are real (None: all), and `tokens` the tokens at these places.
    """

    length_class: int
    slots: slice
    columns: int
    padded: int
    mask: Tensor
    gather: Tensor | slice
    places: Tensor | None
    tokens: Tensor | slice
    joined: bool
    kernel: Attention

    def attend(self, pool: KVPool, layer: int, queries: Tensor, scaling: float) -> Tensor:
        """Output of the group's tokens, [tokens, heads, head_dim]."""
        arguments, num_heads = self._arguments(pool, layer, queries)
        return self._unfold(self.kernel.compute(*arguments, scaling), num_heads)

    def attend_to_part(
        self, pool: KVPool, layer: int, queries: Tensor, scaling: float
    ) -> tuple[Tensor, Tensor]:
        """The same and its weight [tokens, heads], both fp32, to be merged with other parts."""
        arguments, num_heads = self._arguments(pool, layer, queries)
        output, weight = attend_with_weight(*arguments, scaling)
        flat = self._unfold(weight[..., None], num_heads)
        return self._unfold(output, num_heads).float(), flat[..., 0]

    def _arguments(
        self, pool: KVPool, layer: int, queries: Tensor
    ) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], int]:
        """Folded queries, keys, values, mask; and the number of query heads."""
        keys = pool.keys(self.length_class, layer)[self.slots, :, : self.columns]
        values = pool.values(self.length_class, layer)[self.slots, :, : self.columns]
        rows, kv_heads = keys.shape[:2]
        num_heads, head_dim = queries.shape[1:]
        chosen = queries[self.gather].reshape(rows, self.padded, num_heads, head_dim)
        shared = num_heads // kv_heads
        # query heads that share a K/V head become further tokens of that head
        folded = chosen.transpose(1, 2).reshape(rows, kv_heads, shared * self.padded, head_dim)
        repeats = shared if self.mask.shape[2] > 1 else 1
        mask = self.mask if repeats == 1 else self.mask.repeat(1, 1, repeats, 1)
        return (folded, keys, values, mask), num_heads

    def _unfold(self, result: Tensor, num_heads: int) -> Tensor:
        """From [slots, kv_heads, …, width] to [tokens, heads, width]."""
        rows, width = result.shape[0], result.shape[-1]
        result = result.reshape(rows, num_heads, self.padded, width).transpose(1, 2)
        flat = result.reshape(-1, num_heads, width)
        return flat if self.places is None else flat[self.places]


class Grouping:
    """Makes groups on one pool, for one device, dtype and decode attention."""

    def __init__(
        self, pool: KVPool, device: torch.device, dtype: torch.dtype, decode: Attention
    ) -> None:
        self._pool, self._device, self._dtype, self._decode = pool, device, dtype, decode

    def groups(self, shares: Iterable[Share]) -> list[Group]:
        """`shares` in groups; they come in the order of their slots."""
        return [self._group(part) for part in _runs_of(shares)]

    def _group(self, shares: Sequence[Share]) -> Group:
        slots = [slot_of(share.occupant) for share in shares]
        counts = [len(share.tokens) for share in shares]
        padded, joined = max(counts), shares[0].joined
        # few tokens before many columns, as one is
        decodes = padded == 1 or shares[0].starts is None
        whole = joined or (decodes and self._decode.whole_slots)
        gather, places, tokens = self._layout(shares, padded)
        return Group(
            length_class=slots[0].length_class,
            slots=slice(slots[0].index, slots[-1].index + 1),
            columns=self._columns(shares, whole),
            padded=padded,
            mask=self._mask(shares, padded, self._columns(shares, whole)),
            gather=gather,
            places=places,
            tokens=tokens,
            joined=joined,
            kernel=self._decode if decodes else FUSED,
        )

    def _columns(self, shares: Sequence[Share], whole: bool) -> int:
        """Columns to look at: all of the slots', or as many as the longest has in use."""
        if whole:
            return self._pool.capacity(slot_of(shares[0].occupant).length_class)
        return max(
            share.occupant.num_cached if share.starts is None else share.starts + len(share.tokens)
            for share in shares
        )

    def _mask(self, shares: Sequence[Share], padded: int, columns: int) -> Tensor:
        at = torch.arange(columns, device=self._device)
        if shares[0].starts is None:
            ends = self._tensor([share.occupant.num_cached for share in shares])
            hidden = (at >= ends[:, None])[:, None]
        else:
            # token t of a chunk sees columns 0 .. starts + t
            starts = self._tensor([share.starts or 0 for share in shares])
            visible = starts[:, None] + torch.arange(padded, device=self._device)
            hidden = at > visible[..., None]
        mask = torch.zeros(hidden.shape, dtype=self._dtype, device=self._device)
        return mask.masked_fill_(hidden, float("-inf"))[:, None]

    def _layout(
        self, shares: Sequence[Share], padded: int
    ) -> tuple[Tensor | slice, Tensor | None, Tensor | slice]:
        """`gather`, `places` and `tokens` of a group."""
        listed = [token for share in shares for token in share.tokens]
        in_order = listed == list(range(listed[0], listed[0] + len(listed)))
        tokens = slice(listed[0], listed[0] + len(listed)) if in_order else self._tensor(listed)
        if len(listed) == padded * len(shares):
            gather = tokens if in_order else self._tensor(listed).view(len(shares), padded)
            return gather, None, tokens
        gathered, places = lay_out([share.tokens for share in shares])
        return torch.tensor(gathered, device=self._device), self._tensor(places), tokens

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, device=self._device)


def _runs_of(shares: Iterable[Share]) -> Iterator[list[Share]]:
    """Runs of shares at neighbouring slots with similar numbers of tokens, no token twice."""
    run: list[Share] = []
    seen: set[int] = set()
    fewest = most = 0
    for share in shares:
        count = len(share.tokens)
        fewest, most = min(fewest, count), max(most, count)
        limit = _MAX_PADDING if share.starts is not None else _MAX_SHARED_PADDING
        # a prefix and the trunk behind it are two parts, whose outputs are merged one by one
        again = share.starts is None and not seen.isdisjoint(share.tokens)
        if run and (again or not _go_together(run[-1], share) or most > limit * fewest):
            yield run
            run = []
        if not run:
            fewest = most = count
            seen = set()
        run.append(share)
        seen.update(share.tokens)
    if run:
        yield run


def _go_together(left: Share, right: Share) -> bool:
    slot, following = slot_of(left.occupant), slot_of(right.occupant)
    return (
        left.joined == right.joined
        and following.length_class == slot.length_class
        and following.index == slot.index + 1
    )
