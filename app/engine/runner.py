"""The runner: the only code of the engine that touches the device.

It carries out a step: pool operations, slices of an encoder's pass, one ragged forward pass,
sampling. What fails, fails for
the rows concerned: a forward pass that raises is halved until the culprit stands alone, a row
whose logits are not finite is reported and the others are sampled. Knows nothing about queues.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from app.engine.attention.backends import FUSED, Attention
from app.engine.decoding.beam_candidates import Candidates, find_candidates
from app.engine.decoding.logprobs import score_tokens
from app.engine.decoding.sampler import sample
from app.engine.encoder.encoder_runner import Encoded, EncoderRun
from app.engine.kv_cache.pool import KVPool
from app.engine.kv_cache.slots import PoolOperation
from app.engine.ragged_batch import RaggedBatch
from app.engine.sequence import KVEntry, Source, TokenSequence
from app.engine.step import Chunk, Sampled, StepPlan, StepResult
from app.errors import GenerationFault, PolyprefixError
from app.model.frozen import FrozenModel

_log = logging.getLogger(__name__)


Drawn = TypeVar("Drawn")
Faults = dict[KVEntry, PolyprefixError]


@dataclass
class _Results:
    """What a step's forward passes gave, as it comes."""

    sampled: list[Sampled] = field(default_factory=list)
    scored: dict[TokenSequence, Sequence[Sampled]] = field(default_factory=dict)
    candidates: dict[TokenSequence, Candidates] = field(default_factory=dict)
    faults: Faults = field(default_factory=dict)


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
        """Carry out `plan`. Never raises for a fault of a row: it is in the outcome."""
        started = time.monotonic()
        results = _Results()
        _place(self._pool, plan.operations, plan.num_rows, results.faults)
        if self._sources is not None:
            _place(self._sources, plan.source_operations, plan.num_sources, results.faults)
        encoder_seconds = 0.0
        encoded: Mapping[Source, Encoded] = {}
        if plan.encoder_seconds is not None:
            encoded = self._encoder.run(plan.encode, plan.encoder_seconds, results.faults)
            encoder_seconds = time.monotonic() - started
        chunks = [chunk for chunk in plan.chunks if not _depends(chunk.row, results.faults)]
        for part, logits in self._forward(chunks, results.faults):
            self._sample_part(part, logits, results)
        return StepResult(
            results.sampled,
            results.scored,
            results.candidates,
            encoded,
            results.faults,
            time.monotonic() - started,
            encoder_seconds,
        )

    def _forward(
        self, chunks: Sequence[Chunk], faults: Faults
    ) -> Iterable[tuple[Sequence[Chunk], torch.Tensor]]:
        """Chunks with their logits; if a pass raises, its halves are tried until one row fails.

        A repeated pass writes the same keys and values to the same places.
        """
        if not chunks:
            return []
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

    def _logits(self, chunks: Sequence[Chunk]) -> torch.Tensor:
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

    def _sample_part(
        self, chunks: Sequence[Chunk], logits: torch.Tensor, results: _Results
    ) -> None:
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
        for _, item in self._draw(sample, logits, places[False], results.faults):
            results.sampled.append(item)
        for row, candidates in self._draw(find_candidates, logits, places[True], results.faults):
            results.candidates[row] = candidates

    def _draw(
        self,
        draw: Callable[
            [torch.Tensor, Sequence[TokenSequence], Collection[int]], Sequence[Drawn | None]
        ],
        logits: torch.Tensor,
        places: Sequence[tuple[TokenSequence, int]],
        faults: Faults,
    ) -> list[tuple[TokenSequence, Drawn]]:
        """What `draw` makes of each row's logits, which stand at the row's index in `logits`.

        If it raises, row by row, so that one bad state ends one row.
        """
        if not places:
            return []
        rows, sources = [row for row, _ in places], [index for _, index in places]
        # views where each row samples from its own logits, a gather where rows share them
        chosen = logits if sources == list(range(len(logits))) else logits[sources]
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
        for row, item in zip(rows, drawn, strict=True):
            if item is None and row not in faults:
                faults[row] = GenerationFault("the row's logits are not finite numbers")
        return [
            (row, item)
            for row, item in zip(rows, drawn, strict=True)
            if item is not None and row not in faults
        ]

    @staticmethod
    def _score(chunk: Chunk, logits: torch.Tensor) -> Sequence[Sampled]:
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
    """Carry out operations, within the pool's memory."""
    with _logged("giving K/V memory back"):
        pool.prepare(operations, num_occupants)
    for operation in operations:
        try:
            pool.apply(operation)
        except Exception as error:
            faults[operation.occupant] = _fault("its keys and values could not be placed", error)
    with _logged("giving K/V memory back"):
        pool.settle(num_occupants)


def _depends(row: TokenSequence, faults: Collection[KVEntry]) -> bool:
    """Whether the row, or anything that it attends to, is at fault."""
    needs: list[KVEntry] = [row, *row.segments]
    if row.source is not None:
        needs.extend([row.source, *row.source.segments])
    return any(occupant in faults for occupant in needs)


@contextmanager
def _logged(what: str) -> Iterator[None]:
    """For what may fail without harm to any row."""
    try:
        yield
    except Exception:
        _log.exception("%s failed", what)


def _fault(what: str, error: Exception) -> GenerationFault:
    _log.exception("a row failed: %s", what, exc_info=error)
    return GenerationFault(f"the row failed: {what}")
