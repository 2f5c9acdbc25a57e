"""The start-up probe: a ragged batch must give the same logits as plain transformers.

Some model families fail without an error: they never call the attention interface, drop the plan,
or need something that a plan cannot express. So before the first request, a few sequences run
together through the engine's batch (with and without a prefix, a chunk of the prompt first, then
token by token), and their logits are compared with those of plain transformers, recorded at load.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from app.engine.attention.backends import FUSED, Attention
from app.engine.encoder.encoder_runner import EncoderPass
from app.engine.kv_cache.entries import Source
from app.engine.kv_cache.pool import KVPool
from app.engine.kv_cache.slots import SlotTable, length_classes
from app.engine.request import GenerationRequest, SamplingParams, columns_of
from app.engine.runner import RaggedBatch
from app.engine.sequence import OutputText, TokenSequence
from app.engine.step import Chunk
from app.errors import PolyprefixError, UnsupportedModel
from app.model.attention import AttentionPlan
from app.model.dense import keys_values_of
from app.model.frozen import FrozenModel
from app.prefix.prefix import Prefix, PrefixMetadata

_PREFIX_TOKENS = 3
_FIRST_CHUNKS = (6, 4)
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 2e-2}
"""The largest accepted difference of a logit, relative to the spread of the logits."""


def probe(model: FrozenModel, attention: Attention = FUSED) -> float:
    """The largest difference of a logit, relative to the spread of the reference's logits.

    `attention` is the one that will serve. Raises UnsupportedModel if the difference is too large,
    or if an attention layer does not call our function exactly once per pass.
    """
    try:
        worst = _largest_difference(model, attention)
    except PolyprefixError as error:
        raise _unsupported(model, error.message) from error
    except Exception as error:
        raise _unsupported(model, f"a ragged forward pass raised {error!r}") from error
    if not worst <= _TOLERANCE[model.dtype]:
        raise _unsupported(
            model,
            "its logits in a mixed batch differ from plain transformers' by "
            f"{worst:.1e} of their spread, with {attention.name} attention; it needs something "
            "that the attention plan ignores",
        )
    return worst


class _CountingPlan:
    """Passes calls on to a plan and counts them by (role, layer)."""

    def __init__(self, plan: AttentionPlan) -> None:
        self._plan = plan
        self.calls: Counter[tuple[str, int]] = Counter()

    def attend(self, role: str, layer: int, *arguments: Any) -> torch.Tensor:
        self.calls[role, layer] += 1
        return self._plan.attend(role, layer, *arguments)


@torch.inference_mode()
def _largest_difference(model: FrozenModel, attention: Attention) -> float:
    rows = [_row_of(model, index) for index in range(len(model.references))]
    longest = max(len(run.token_ids) for run in model.references)
    table, pool = _memory(model, "decoder", longest)
    sources = _encode_sources(model, rows)
    for row in rows:
        table.place(row, longest, with_prefixes=True)
    for operation in table.take_operations():
        pool.apply(operation)
    worst = 0.0
    counts: Sequence[int] = _FIRST_CHUNKS
    while any(row.num_pending for row in rows):
        chunks = [
            Chunk(row, min(count, row.num_pending), (row,))
            for row, count in zip(rows, counts, strict=True)
            if row.num_pending
        ]
        worst = max(worst, _compare(model, attention, chunks, pool, sources))
        for chunk in chunks:
            chunk.row.num_computed += chunk.count
        counts = [1] * len(rows)
    return worst


def _memory(model: FrozenModel, role: str, longest: int) -> tuple[SlotTable, KVPool]:
    """K/V memory for one entry of `longest` columns per reference."""
    capacities = length_classes(longest)
    pool = KVPool(model.spec.modules[role], capacities, 1 << 62, model.device, model.dtype)
    return SlotTable(capacities, max_columns=longest * len(model.references)), pool


def _encode_sources(model: FrozenModel, rows: Sequence[TokenSequence]) -> KVPool | None:
    """Encode the rows' sources in one pass and store them; None for a model without an encoder."""
    sources = [row.source for row in rows if row.source is not None]
    if not sources:
        return None
    table, pool = _memory(model, "cross", max(source.num_cached for source in sources))
    encoding = EncoderPass(model, sources)
    while not encoding.advance():
        pass
    for source, encoded in encoding.result.items():
        table.place_encoded(source, encoded)
    for operation in table.take_operations():
        pool.apply(operation)
    return pool


def _row_of(model: FrozenModel, index: int) -> TokenSequence:
    """Reference `index` as a row. In every second one the first tokens become a prefix."""
    tokens, source_ids = model.references[index].token_ids, model.references[index].source_ids
    prefixes: tuple[Prefix, ...] = ()
    if index % 2:
        words = keys_values_of(model, tokens[:_PREFIX_TOKENS], source_ids)
        metadata = PrefixMetadata(position_offset=_PREFIX_TOKENS)
        prefixes = (Prefix({"decoder": words}, metadata),)
        tokens = tokens[_PREFIX_TOKENS:]
    sampling = SamplingParams(max_tokens=1)
    request = GenerationRequest(f"probe-{index}", "", source_ids or tokens, sampling, prefixes)
    output = OutputText(0, sampling, model.text)
    source = Source(request) if source_ids else None
    return TokenSequence(request, index, list(tokens), len(tokens), 0, output, source=source)


def _compare(
    model: FrozenModel,
    attention: Attention,
    chunks: Sequence[Chunk],
    pool: KVPool,
    sources: KVPool | None,
) -> float:
    """Run one ragged step; its largest relative difference from the references."""
    ragged = RaggedBatch(chunks, pool, model.device, model.dtype, attention, sources)
    counting = _CountingPlan(ragged)
    logits = model.forward(ragged.input_ids, ragged.position_ids, counting)[0].float()
    roles = [role for role in model.spec.modules if role != "encoder"]
    layers = [(role, layer) for role in roles for layer in range(model.spec.modules[role].layers)]
    if counting.calls != Counter(layers):
        raise UnsupportedModel(
            f"{len(counting.calls)} of its {len(layers)} attention layers call transformers' "
            "attention interface once per pass"
        )
    worst, first = 0.0, 0
    for chunk in chunks:
        expected = model.references[chunk.row.index].logits
        start = columns_of(chunk.row.prefixes, "decoder") + chunk.row.num_computed
        wanted = expected[start : start + chunk.count]
        got = logits[first : first + chunk.count]
        spread = float(expected.max() - expected.min()) or 1.0
        difference = (got - wanted).abs().nan_to_num(nan=float("inf"))
        worst = max(worst, float(difference.max()) / spread)
        first += chunk.count
    return worst


def _unsupported(model: FrozenModel, reason: str) -> UnsupportedModel:
    return UnsupportedModel(f"base model {model.spec.model_id!r} is not supported: {reason}")
