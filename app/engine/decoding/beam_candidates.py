"""From logits to the candidates of beam search: each row's best next tokens.

As transformers orders it: log-probabilities first, then bans, biases and penalties on those, then
the best.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from app.engine.decoding.beam_search import candidates_per_beam
from app.engine.decoding.logits_processors import process
from app.engine.decoding.sampler import top
from app.engine.sequence import TokenSequence

Candidates = Sequence[tuple[int, float]]
"""(token id, processed log-probability), best first."""


def find_candidates(
    logits: torch.Tensor, rows: Sequence[TokenSequence], eos_token_ids: Collection[int]
) -> list[Candidates | None]:
    """Candidates of each row from its `logits` [rows, vocabulary], fp32.

    None for a row whose logits are not finite.
    """
    logprobs = torch.log_softmax(logits, dim=-1)
    counts = [_count(row, eos_token_ids) for row in rows]
    finite = (~logprobs[:, 0].isnan()).tolist()
    process(logprobs, rows, eos_token_ids)
    values, ids = top(logprobs, min(max(counts), logprobs.shape[1]))
    found: list[Candidates | None] = []
    listed = zip(ids.tolist(), values.tolist(), strict=True)
    for index, (row, (row_ids, row_values)) in enumerate(zip(rows, listed, strict=True)):
        count = counts[index]
        if not finite[index]:
            found.append(None)
        elif row.forced_token is not None:
            found.append([(row.forced_token, 0.0)])
        else:
            found.append(list(zip(row_ids[:count], row_values[:count], strict=True)))
    return found


def _count(row: TokenSequence, eos_token_ids: Collection[int]) -> int:
    beam = row.request.sampling.beam
    return 0 if beam is None else candidates_per_beam(beam.num_beams, len(eos_token_ids))
