"""The runner: the only code of the engine that touches the device.

It carries out a step: pool operations, slices of an encoder's pass, one ragged forward pass,
sampling. In the ragged pass the tokens of all rows that are due are laid end to end; this is where
tasks mix. A fault ends only the rows concerned: a forward pass that raises is halved until the
culprit is alone, a row whose logits are not finite is reported and the others are sampled.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from app.engine.attention.backends import FUSED, Attention
from app.engine.attention.native_backend import AttentionKernel, NativeAttention, Part, Run
from app.engine.attention.torch_backend import GroupedAttention, by_groups
from app.engine.decoding.beam_candidates import find_candidates
from app.engine.decoding.sampler import sample, score_tokens
from app.engine.encoder.encoder_runner import EncoderRun
from app.engine.kv_cache.entries import KVEntry
from app.engine.kv_cache.pool import KVPool
from app.engine.kv_cache.slots import PoolOperation, slot_of
from app.engine.sequence import TokenSequence
from app.engine.step import Chunk, Sampled, StepPlan, StepResult
from app.errors import GenerationFault, PolyprefixError, UnsupportedModel
from app.model.frozen import FrozenModel

_log = logging.getLogger(__name__)


Drawn = TypeVar("Drawn")
Faults = dict[KVEntry, PolyprefixError]


class RaggedBatch:
    """An `AttentionPlan` over K/V memory for one step.

    The tokens' keys and values are written into the pool at (slot, column); then each token attends
    to [prefix | prompt | generated]: the columns of its row's own slot, together with the segments
    that the row shares with others; with an encoder also, across, to its request's source. Native
    code does that where there is any, else torch.

    `input_ids` and `position_ids` are [1, tokens]; `last_tokens` holds, for each chunk, the index
    of its last token in the step. `sources` is the memory of encoded sources, where rows have any.
    """

    def __init__(
        self,
        chunks: Sequence[Chunk],
        pool: KVPool,
        device: torch.device,
        dtype: torch.dtype,
        decode_attention: Attention = FUSED,
        sources: KVPool | None = None,
    ) -> None:
        ids: list[int] = []
        positions: list[int] = []
        self.last_tokens: list[int] = []
        for chunk in chunks:
            row = chunk.row
            pool.ensure(slot_of(row))
            start = row.num_computed
            ids.extend(row.token_ids[start : start + chunk.count])
            first = row.request.position_offset + start
            positions.extend(range(first, first + chunk.count))
            self.last_tokens.append(len(ids) - 1)
        self.input_ids = torch.tensor([ids], device=device)
        self.position_ids = torch.tensor([positions], device=device)
        self._by_role: Mapping[str, NativeAttention | GroupedAttention]
        if decode_attention.native is not None:
            self._by_role = _by_native_code(decode_attention.native, chunks, pool, sources)
        else:
            self._by_role = by_groups(chunks, pool, sources, decode_attention, device, dtype)

    def attend(
        self, role: str, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """See `AttentionPlan`; the batch is one long row."""
        if role not in self._by_role:
            raise UnsupportedModel(f"a decoding step asks for attention of the kind {role!r}")
        queries = query[0].transpose(0, 1)  # [tokens, heads, head_dim]
        new = None
        if role == "decoder":
            new = key[0].transpose(0, 1), value[0].transpose(0, 1)
        return self._by_role[role].attend(layer, queries, new, scaling)[None]


def _by_native_code(
    kernel: AttentionKernel, chunks: Sequence[Chunk], pool: KVPool, sources: KVPool | None
) -> dict[str, NativeAttention]:
    """Attention by role; what rows share comes before their own columns."""
    own: list[Run] = []
    across: list[Run] = []
    for chunk in chunks:
        row, parts = chunk.row, list[Part]()
        for segment in row.segments:
            parts.append(pool.part(slot_of(segment), segment.num_cached))
        parts.append(pool.part(slot_of(row), row.num_cached + 1))
        own.append(Run(parts, chunk.count))
        if sources is not None and row.source is not None:
            read: list[KVEntry] = [*row.source.segments, row.source]
            parts = [sources.part(slot_of(one), one.num_cached) for one in read]
            across.append(Run(parts, chunk.count))
    found = {"decoder": NativeAttention(kernel, pool.kv_heads, own, grows=True)}
    if sources is not None:
        found["cross"] = NativeAttention(kernel, sources.kv_heads, across, grows=False)
    return found


class Runner:
    """Runs steps of one model on its K/V memory; `sources` is there for a model with an encoder."""

    def __init__(
        self,
        model: FrozenModel,
        pool: KVPool,
        decode_attention: Attention = FUSED,
        sources: KVPool | None = None,
    ) -> None:
        self._model = model
        self._pool = pool
        self._sources = sources
        self._encoder = EncoderRun(model)
        self._decode_attention = decode_attention

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepResult:
        """Carry out `plan`. Never raises for a fault of a row: it is in the result."""
        started = time.monotonic()
        results = StepResult()
        _place(self._pool, plan.operations, plan.num_rows, results.faults)
        if self._sources is not None:
            encoding = plan.encoding
            _place(self._sources, encoding.operations, encoding.num_sources, results.faults)
            if encoding.seconds is not None:
                results.encoded = self._encoder.run(
                    encoding.begin, encoding.seconds, results.faults
                )
                results.encoder_seconds = time.monotonic() - started
        chunks: Sequence[Chunk] = plan.chunks
        if results.faults:
            chunks = [chunk for chunk in chunks if not _depends(chunk.row, results.faults)]
        for part, logits in self._forward(chunks, results.faults) if chunks else ():
            self._sample_part(part, logits, results)
        results.seconds = time.monotonic() - started
        return results

    def _forward(
        self, chunks: Sequence[Chunk], faults: Faults
    ) -> Iterable[tuple[Sequence[Chunk], Tensor]]:
        """Chunks with their logits; if a pass raises, its halves are tried until one row fails.

        A repeated pass writes the same keys and values to the same places.
        """
        try:
            return [(chunks, self._logits(chunks))]
        except Exception as error:
            if len(chunks) == 1:
                faults[chunks[0].row] = _fault("its forward pass failed", error)
                return []
            _log.warning("a step of %d rows failed (%s); halving it", len(chunks), error)
            middle = len(chunks) // 2
            return [
                *self._forward(chunks[:middle], faults),
                *self._forward(chunks[middle:], faults),
            ]

    def _logits(self, chunks: Sequence[Chunk]) -> Tensor:
        """fp32 logits [kept tokens, vocabulary]: per chunk all scored tokens or the last one.

        A step in which no chunk wants logits yields one token's, for nobody.
        """
        plan = RaggedBatch(
            chunks,
            self._pool,
            self._model.device,
            self._model.dtype,
            self._decode_attention,
            self._sources,
        )
        keep: list[int] = []
        for chunk, last in zip(chunks, plan.last_tokens, strict=True):
            if chunk.scores:
                keep.extend(range(last - chunk.count + 1, last + 1))
            elif chunk.samplers:
                keep.append(last)
        wanted = torch.tensor(keep or [0], device=self._model.device)
        logits = self._model.forward(plan.input_ids, plan.position_ids, plan, wanted)
        return logits[0].float()

    def _sample_part(self, chunks: Sequence[Chunk], logits: Tensor, results: StepResult) -> None:
        """Sample and score the chunks of one forward pass."""
        places: dict[bool, list[tuple[TokenSequence, int]]] = {False: [], True: []}
        first = 0
        for chunk in chunks:
            kept = chunk.count if chunk.scores else min(1, len(chunk.samplers))
            if chunk.scores:
                try:
                    results.scored[chunk.row] = self._score(chunk, logits[first : first + kept])
                except Exception as error:
                    results.faults[chunk.row] = _fault("its prompt could not be scored", error)
            for row in chunk.samplers:
                places[row.request.sampling.beam is not None].append((row, first + kept - 1))
            first += kept
        if places[False]:
            drawn = self._draw(sample, logits, places[False], results.faults)
            results.sampled.extend(drawn.values())
        if places[True]:
            found = self._draw(find_candidates, logits, places[True], results.faults)
            results.candidates.update(found)

    def _draw(
        self,
        draw: Callable[[Tensor, Sequence[TokenSequence], Collection[int]], Sequence[Drawn | None]],
        logits: Tensor,
        places: Sequence[tuple[TokenSequence, int]],
        faults: Faults,
    ) -> dict[TokenSequence, Drawn]:
        """What `draw` makes of each row's logits, which are at the row's index in `logits`.

        If it raises, it is called row by row, so that one bad state ends one row.
        """
        rows, sources = zip(*places, strict=True)
        # views where each row samples from its own logits, a gather where rows share them
        chosen = logits if sources == tuple(range(len(logits))) else logits[list(sources)]
        eos = self._model.text.eos_token_ids
        try:
            drawn = list(draw(chosen, rows, eos))
        except Exception:
            _log.warning("sampling of %d rows failed; sampling them one by one", len(rows))
            drawn = []
            for index, row in enumerate(rows):
                try:
                    drawn.extend(draw(chosen[index : index + 1], [row], eos))
                except Exception as error:
                    faults[row] = _fault("its next token could not be sampled", error)
                    drawn.append(None)
        results: dict[TokenSequence, Drawn] = {}
        for row, item in zip(rows, drawn, strict=True):
            if item is not None:
                results[row] = item
            elif row not in faults:
                faults[row] = GenerationFault("the row's logits are not finite numbers")
        return results

    @staticmethod
    def _score(chunk: Chunk, logits: Tensor) -> Sequence[Sampled]:
        """Scores of the prompt tokens that follow the chunk's tokens."""
        start = chunk.row.num_computed + 1
        following = chunk.row.token_ids[start : min(start + chunk.count, chunk.row.num_prompt)]
        if not following:
            return []
        num_top = chunk.row.request.sampling.logprobs or 0
        return score_tokens(logits[: len(following)], chunk.row, following, num_top)


def _place(
    pool: KVPool,
    operations: Sequence[PoolOperation],
    num_occupants: Sequence[int],
    faults: Faults,
) -> None:
    """Carry out operations, within the pool's memory; giving memory back may fail without harm."""
    try:
        pool.fit(num_occupants, operations)
    except Exception:
        _log.exception("giving K/V memory back failed")
    for operation in operations:
        try:
            pool.apply(operation)
        except Exception as error:
            faults[operation.occupant] = _fault("its keys and values could not be placed", error)
    if operations:
        try:
            pool.fit(num_occupants)
        except Exception:
            _log.exception("giving K/V memory back failed")


def _depends(row: TokenSequence, faults: Collection[KVEntry]) -> bool:
    """Whether the row, or anything that it attends to, is at fault."""
    needs: list[KVEntry] = [row, *row.segments]
    if row.source is not None:
        needs.extend([row.source, *row.source.segments])
    return any(occupant in faults for occupant in needs)


def _fault(what: str, error: Exception) -> GenerationFault:
    _log.exception("a row failed: %s", what, exc_info=error)
    return GenerationFault(f"the row failed: {what}")
