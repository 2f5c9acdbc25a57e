"""The most probable tokens of a vocabulary, in two stages: several times faster on a CPU."""

from __future__ import annotations

import torch

_BLOCK = 128
"""Tokens of the vocabulary that are first looked at by their best one alone."""


def best(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest of each row of [rows, columns] and its first column, [rows] each.

    A NaN counts as the largest.
    """
    rows, columns = values.shape
    whole = columns - columns % _BLOCK
    if whole == 0:
        largest, index = values.max(dim=-1)
        return largest, index
    blocks = values[:, :whole].view(rows, -1, _BLOCK)
    largest, block = blocks.amax(dim=-1).max(dim=-1)
    inside = blocks[torch.arange(rows, device=values.device), block].argmax(dim=-1)
    index = block * _BLOCK + inside
    if whole == columns:
        return largest, index
    rest, at = values[:, whole:].max(dim=-1)
    better = (rest > largest) | rest.isnan()
    return torch.where(better, rest, largest), torch.where(better, whole + at, index)


def top(values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` largest of each row of [rows, columns] and their columns, largest first.

    They stand in the `count` blocks whose maxima are largest.
    """
    rows, columns = values.shape
    whole = columns - columns % _BLOCK
    if whole // _BLOCK <= count:
        return values.topk(count, dim=-1)
    blocks = values[:, :whole].view(rows, -1, _BLOCK)
    chosen = blocks.amax(dim=-1).topk(count, dim=-1).indices  # [rows, count]
    inside = blocks.gather(1, chosen[..., None].expand(-1, -1, _BLOCK)).flatten(1)
    offsets = torch.arange(_BLOCK, device=values.device)
    places = (chosen[..., None] * _BLOCK + offsets).flatten(1)
    rest = torch.arange(whole, columns, device=values.device).expand(rows, -1)
    largest, index = torch.cat([inside, values[:, whole:]], dim=1).topk(count, dim=-1)
    return largest, torch.cat([places, rest], dim=1).gather(1, index)
