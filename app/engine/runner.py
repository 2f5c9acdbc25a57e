"""The runner: the only code of the engine that touches the device.

It carries out a step: pool operations, one ragged forward pass, sampling. What fails, fails for
the rows concerned: a forward pass that raises is halved until the culprit stands alone, a row
whose logits are not finite is reported and the others are sampled. Knows nothing about queues.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch

from app.engine.kernels import ATTENTIONS
from app.engine.plan import Chunk, Outcome, Sampled, StepPlan
from app.engine.pool import KVPool
from app.engine.ragged import RaggedPlan
from app.engine.row import Row
from app.engine.sampling import sample, score_tokens
from app.errors import GenerationFault, PolyprefixError
from app.model.frozen import FrozenModel

_log = logging.getLogger(__name__)


class Runner:
    """Runs steps of one model on one pool."""

    def __init__(self, model: FrozenModel, pool: KVPool, decode_attention: str = "sdpa") -> None:
        self._model = model
        self._pool = pool
        self._decode_attention = ATTENTIONS[decode_attention]

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> Outcome:
        """Carry out `plan`. Never raises for a fault of a row: it is in the outcome."""
        started = time.monotonic()
        faults: dict[Row, PolyprefixError] = {}
        self._place(plan, faults)
        sampled: list[Sampled] = []
        scored: dict[Row, Sequence[Sampled]] = {}
        chunks = [chunk for chunk in plan.chunks if chunk.row not in faults]
        for part, logits in self._forward(chunks, faults):
            self._sample_part(part, logits, sampled, scored, faults)
        return Outcome(sampled, scored, faults, time.monotonic() - started)

    def _place(self, plan: StepPlan, faults: dict[Row, PolyprefixError]) -> None:
        """Carry out the pool operations, within the pool's memory."""
        with _logged("giving K/V memory back"):
            self._pool.prepare(plan.operations, plan.num_rows)
        for operation in plan.operations:
            try:
                self._pool.apply(operation)
            except Exception as error:
                faults[operation.row] = _fault("its keys and values could not be placed", error)
        with _logged("giving K/V memory back"):
            self._pool.settle(plan.num_rows)

    def _forward(
        self, chunks: Sequence[Chunk], faults: dict[Row, PolyprefixError]
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
        plan = RaggedPlan(
            chunks, self._pool, self._model.device, self._model.dtype, self._decode_attention
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
        self,
        chunks: Sequence[Chunk],
        logits: torch.Tensor,
        sampled: list[Sampled],
        scored: dict[Row, Sequence[Sampled]],
        faults: dict[Row, PolyprefixError],
    ) -> None:
        """Sample and score the chunks of one forward pass."""
        rows: list[Row] = []
        sources: list[int] = []
        first = 0
        for chunk in chunks:
            kept = chunk.count if chunk.scores else min(1, len(chunk.samplers))
            if chunk.scores:
                try:
                    scored[chunk.row] = self._score(chunk, logits[first : first + kept])
                except Exception as error:
                    faults[chunk.row] = _fault("its prompt could not be scored", error)
            rows.extend(chunk.samplers)
            sources.extend([first + kept - 1] * len(chunk.samplers))
            first += kept
        if not rows:
            return
        # views where each row samples from its own logits, a gather where rows share them
        chosen = logits if sources == list(range(len(logits))) else logits[sources]
        for row, item in zip(rows, self._draw(chosen, rows, faults), strict=True):
            if item is not None and row not in faults:
                sampled.append(item)
            elif row not in faults:
                faults[row] = GenerationFault("the row's logits are not finite numbers")

    def _draw(
        self, logits: torch.Tensor, rows: Sequence[Row], faults: dict[Row, PolyprefixError]
    ) -> list[Sampled | None]:
        """Sample all rows; if that raises, row by row, so that one bad state ends one row."""
        eos = self._model.text.eos_token_ids
        try:
            return sample(logits, rows, eos)
        except Exception:
            _log.warning("sampling of %d rows failed; sampling them one by one", len(rows))
        drawn: list[Sampled | None] = []
        for index, row in enumerate(rows):
            try:
                drawn.extend(sample(logits[index : index + 1], [row], eos))
            except Exception as error:
                faults[row] = _fault("its next token could not be sampled", error)
                drawn.append(None)
        return drawn

    @staticmethod
    def _score(chunk: Chunk, logits: torch.Tensor) -> Sequence[Sampled]:
        """Scores of the prompt tokens that follow the chunk's tokens."""
        start = chunk.row.num_computed + 1
        following = chunk.row.token_ids[start : min(start + chunk.count, chunk.row.num_prompt)]
        if not following:
            return []
        num_top = chunk.row.request.sampling.logprobs or 0
        return score_tokens(logits[: len(following)], chunk.row, following, num_top)


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
