"""Runs the encoder over whole sources, in slices between which other rows decode.

A bidirectional encoder needs the whole source at once, so a pass over long sources would make all
decoding rows wait. Therefore a pass runs as a coroutine (a greenlet) on the engine's thread. It
pauses before and after each layer's attention, and each step advances it for a limited time.
Sources of different lengths and with different prefixes are read together.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from app.engine.attention.padding import lay_out
from app.engine.kv_cache.entries import KVEntry, Source
from app.engine.request import columns_of
from app.errors import GenerationFault, PolyprefixError, UnsupportedModel
from app.model.frozen import FrozenModel

_log = logging.getLogger(__name__)

_MAX_PADDING = 1.5
"""One attention call takes sources of which the longest has at most so many times the tokens of
the shortest."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """One encoded source: the cross-attention's [2, layers, heads, tokens, head_dim]."""

    keys_values: Tensor


@dataclass(frozen=True)
class _Group:
    """Sources of similar length, padded to one length for one attention call.

    `gather` [sources, padded] holds the index of the token at each place. `places` are the flat
    indices of the places that are not padding, and `tokens` the indices of the tokens there.
    `prefix` is [2, layers, sources, heads, columns, head_dim]. `visible` [sources, 1, 1, columns +
    padded] is the mask; None if everything is visible.
    """

    gather: Tensor
    places: Tensor
    tokens: Tensor
    prefix: Tensor
    visible: Tensor | None


class EncoderPass:
    """One pass of the encoder over `sources`, computed slice by slice in one thread."""

    def __init__(self, model: FrozenModel, sources: Sequence[Source]) -> None:
        self.sources = tuple(sources)
        self._model = model
        self._coroutine = greenlet(self._run)
        self._result: dict[Source, Encoded] | None = None

    def advance(self) -> bool:
        """Compute one slice; True if the pass is done. Raises what the model raises."""
        self._coroutine.switch()
        return self._result is not None

    @property
    def result(self) -> dict[Source, Encoded]:
        """Each source's result; empty until the pass is done."""
        return self._result or {}

    def _run(self) -> None:
        model = self._model.encoder_decoder
        if model is None:
            raise UnsupportedModel(f"base model of type {self._model.family!r} has no encoder")
        plan = EncoderBatch(self.sources, self._model, _pause)
        encoded = model.encode(plan.input_ids, plan.position_ids, plan)[0]
        layers = []
        for layer in range(model.decoder_layers):
            _pause()
            layers.append(torch.stack(model.cross_keys_values(layer, encoded)))
        whole = torch.stack(layers, dim=1).transpose(2, 3)  # [2, layers, heads, tokens, head_dim]
        counts = [source.num_tokens for source in self.sources]
        parts = torch.split(whole, counts, dim=3)
        self._result = {
            source: Encoded(part) for source, part in zip(self.sources, parts, strict=True)
        }


def _pause() -> None:
    """End a slice: switch back to the code that called `advance`."""
    parent = getcurrent().parent
    if parent is not None:
        parent.switch()


class EncoderRun:
    """The running passes of one engine. The latest one goes first."""

    def __init__(self, model: FrozenModel) -> None:
        self._model = model
        self._passes: list[EncoderPass] = []

    def run(
        self, begin: Sequence[Source], seconds: float, faults: dict[KVEntry, PolyprefixError]
    ) -> dict[Source, Encoded]:
        """Start a pass over `begin`, if any, and compute for about `seconds`, at least one slice.

        Returns the results of the pass if it is done, else {}. If a pass raises, each of its
        sources is tried alone; those that fail again are added to `faults`.
        """
        if begin:
            self._passes.append(EncoderPass(self._model, begin))
        if not self._passes:
            return {}
        current = self._passes[-1]
        try:
            if not _advance_for(current, seconds):
                return {}
            self._passes.pop()
            return current.result
        except Exception as error:
            self._passes.pop()
            _log.warning("encoding %d sources failed (%s)", len(current.sources), error)
            return self._one_by_one(current.sources, faults)

    def _one_by_one(
        self, sources: Sequence[Source], faults: dict[KVEntry, PolyprefixError]
    ) -> dict[Source, Encoded]:
        results: dict[Source, Encoded] = {}
        for source in sources:
            alone = EncoderPass(self._model, [source])
            try:
                _advance_for(alone, float("inf"))
                results |= alone.result
            except Exception as error:
                _log.exception("a source could not be encoded", exc_info=error)
                faults[source] = GenerationFault("the row failed: its source could not be encoded")
        return results


def _advance_for(running: EncoderPass, seconds: float) -> bool:
    """Advance until the next slice might exceed `seconds`; True if the pass is done."""
    started = before = time.monotonic()
    longest = 0.0
    while not running.advance():
        now = time.monotonic()
        longest = max(longest, now - before)
        before = now
        if now - started + longest > seconds:
            return False
    return True


class EncoderBatch:
    """An `AttentionPlan` in which every token sees its source's prefix and the whole source.

    `input_ids` and `position_ids` are [1, tokens]; `pause` is called around each attention.
    """

    def __init__(
        self, sources: Sequence[Source], model: FrozenModel, pause: Callable[[], None]
    ) -> None:
        self._model = model
        self._pause = pause
        ids = [token for source in sources for token in source.request.prompt_ids]
        positions = [place for source in sources for place in range(source.num_tokens)]
        self.input_ids = torch.tensor([ids], device=model.device)
        self.position_ids = torch.tensor([positions], device=model.device)
        self._groups = [self._plan_group(group) for group in _groups_of(sources)]

    def attend(
        self, role: str, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """See `AttentionPlan`; the batch is one long row."""
        if role != "encoder":
            raise UnsupportedModel(f"an encoder asks for attention of the kind {role!r}")
        self._pause()
        flat = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
        output = torch.empty_like(flat[0])  # [tokens, heads, head_dim]
        for group in self._groups:
            queries, keys, values = (part[group.gather].transpose(1, 2) for part in flat)
            if group.prefix.shape[4]:
                keys = torch.cat([group.prefix[0, layer], keys], dim=2)
                values = torch.cat([group.prefix[1, layer], values], dim=2)
            result = scaled_dot_product_attention(
                queries, keys, values, attn_mask=group.visible, scale=scaling
            )
            output[group.tokens] = result.transpose(1, 2).flatten(0, 1)[group.places]
        self._pause()
        return output[None]

    def _plan_group(self, group: Sequence[tuple[Source, int]]) -> _Group:
        """`group` holds sources, each with the index of its first token in the batch."""
        counts = [source.num_tokens for source, _ in group]
        padded = max(counts)
        runs = [range(first, first + source.num_tokens) for source, first in group]
        gather, places = lay_out(runs)
        tokens = [token for run in runs for token in run]
        device = self._model.device
        prefix, lengths = self._prefixes([source for source, _ in group])
        columns = prefix.shape[4]
        at = torch.arange(columns + padded, device=device)
        before = torch.tensor(lengths, device=device)[:, None]
        end = columns + torch.tensor(counts, device=device)[:, None]
        visible = (at < before) | ((at >= columns) & (at < end))
        return _Group(
            gather=torch.tensor(gather, device=device),
            places=torch.tensor(places, device=device),
            tokens=torch.tensor(tokens, device=device),
            prefix=prefix,
            visible=None if bool(visible.all()) else visible[:, None, None],
        )

    def _prefixes(self, sources: Sequence[Source]) -> tuple[Tensor, list[int]]:
        """Stacked encoder prefixes, [2, layers, sources, heads, columns, head_dim], and lengths."""
        shape = self._model.spec.modules["encoder"]
        lengths = [columns_of(source.request.prefixes, "encoder") for source in sources]
        size = (2, shape.layers, len(sources), shape.kv_heads, max(lengths), shape.head_dim)
        stacked = torch.zeros(size, dtype=self._model.dtype, device=self._model.device)
        for row, source in enumerate(sources):
            column = 0
            for prefix in source.request.prefixes:
                if (module := prefix.modules.get("encoder")) is None:
                    continue
                end = column + module.length
                stacked[0, :, row, :, column:end] = module.keys
                stacked[1, :, row, :, column:end] = module.values
                column = end
        return stacked, lengths


def _groups_of(sources: Sequence[Source]) -> Iterator[list[tuple[Source, int]]]:
    """Groups of similar length: sources, each with the index of its first token in the batch."""
    firsts, first = [], 0
    for source in sources:
        firsts.append((source, first))
        first += source.num_tokens
    group: list[tuple[Source, int]] = []
    for source, first in sorted(firsts, key=lambda item: item[0].num_tokens):
        if group and source.num_tokens > _MAX_PADDING * group[0][0].num_tokens:
            yield group
            group = []
        group.append((source, first))
    yield group
