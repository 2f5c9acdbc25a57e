"""Beam search as transformers does it: which continuations go on, which are results, when to stop.

One `BeamSearch` is one request's search. It is told the best next tokens of every running beam and
answers how the beams continue. It picks what `GenerationMixin._beam_search` of transformers 5.23
picks without sampling; only the order of exact ties is its own.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

_BARRED = -1.0e9
"""What transformers adds to a score to keep it out of the way; also the score of an empty result,
so it decides which results count and when a search may stop."""


@dataclass(frozen=True)
class BeamParams:
    """How a request searches; the meanings and defaults are those of transformers.

    `num_beams` is at least 1. Results are ranked by their summed log-probability over their number
    of tokens (end-of-text included) to the power of `length_penalty`, within -10 and 10: above 0
    favours long results, below 0 short ones. `early_stopping` True stops at `num_beams` results,
    False when the best beam as it is now cannot enter them, "never" when it cannot at any length.
    """

    num_beams: int
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False


def beam_params(options: Mapping[str, Any]) -> BeamParams | None:
    """From options by transformers' names; None for one beam, which is plain greedy decoding."""
    num_beams = int(options.get("num_beams", 1))
    if num_beams == 1:
        return None
    return BeamParams(
        num_beams,
        length_penalty=float(options.get("length_penalty", 1.0)),
        early_stopping=options.get("early_stopping", False),
    )


@dataclass(frozen=True, slots=True)
class BeamAdvance:
    """The next step's beams, best first: beam i is beam `parents[i]`, then `tokens[i]`."""

    parents: tuple[int, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One result: its generated tokens, the end-of-text token included if that ended it.

    `score` is what results are ranked by (`sequences_scores` of transformers), `logprobs` the
    processed log-probability of each token, in nats.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    score: float
    finished_by_eos: bool

    @property
    def cumulative_logprob(self) -> float:
        return sum(self.logprobs)


class _Beam(NamedTuple):
    score: float
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()


class _Continuation(NamedTuple):
    score: float
    parent: int
    token: int
    logprob: float


def candidates_per_beam(num_beams: int, num_eos_tokens: int) -> int:
    """How many next tokens of each beam a step needs: so many that `num_beams` do not end."""
    return max(2, 1 + num_eos_tokens) * num_beams


class BeamSearch:
    """The search of one request over at most `max_tokens` (at least 1) new tokens.

    It keeps `num_beams` running beams, and at most as many results, of which `num_results` are
    wanted. A token of `eos_token_ids` ends a beam; a caller that must not end gives it no
    probability. A step takes `candidates_per_beam` candidates of each row, or as many as there are.
    `done` says that there is nothing more to compute.
    """

    def __init__(
        self,
        params: BeamParams,
        max_tokens: int,
        eos_token_ids: Collection[int],
        num_results: int = 1,
    ) -> None:
        self.done = False
        self._params = params
        self._max_tokens = max_tokens
        self._eos_token_ids = frozenset(eos_token_ids)
        self._num_results = num_results
        self.candidates_per_beam = candidates_per_beam(params.num_beams, len(self._eos_token_ids))
        self._num_generated = 0
        self._finished: list[Hypothesis] = []
        # all beams start as the prompt: one alone may branch, the others never outdo it
        self._beams = [_Beam(0.0)] + [_Beam(_BARRED)] * (params.num_beams - 1)

    @property
    def running(self) -> tuple[tuple[int, ...], ...]:
        """Generated tokens of the rows that the next step computes: one row first, then beams."""
        rows = self._beams if self._num_generated else self._beams[:1]
        return tuple(beam.token_ids for beam in rows)

    def advance(self, candidates: Sequence[Sequence[tuple[int, float]]]) -> BeamAdvance | None:
        """Take (token, processed log-probability) of each row, best first; None if now done.

        The first step has one row, the prompt; every later one has `num_beams`, in the order of
        the last answer. Log-probabilities may be -inf.
        """
        best = self._best(candidates)
        self._num_generated += 1
        at_limit = self._num_generated >= self._max_tokens
        ends = [at_limit or item.token in self._eos_token_ids for item in best]
        self._collect(best, ends)
        chosen = self._continue(best, ends)
        self.done = at_limit or not chosen or self._settled(chosen[0].score)
        if self.done:
            return None
        first_step = self._num_generated == 1
        parents = tuple(0 if first_step else item.parent for item in chosen)
        return BeamAdvance(parents, tuple(item.token for item in chosen))

    def results(self) -> list[Hypothesis]:
        """The `num_results` best results of a search that is done, best first.

        Where bans left too few continuations, empty ones of score -1e9 come last.
        """
        empty = Hypothesis((), (), _BARRED, finished_by_eos=False)
        missing = max(0, self._num_results - len(self._finished))
        return self._finished[: self._num_results] + [empty] * missing

    def _best(self, candidates: Sequence[Sequence[tuple[int, float]]]) -> list[_Continuation]:
        """The best continuations over all beams, as many as one row has candidates."""
        if self._num_generated == 0:
            [only] = candidates
            candidates = [only] * len(self._beams)
        best = [
            _Continuation(beam.score + logprob, parent, token, logprob)
            for parent, (beam, row) in enumerate(zip(self._beams, candidates, strict=True))
            for token, logprob in row
        ]
        best.sort(key=_score, reverse=True)
        return best[: self.candidates_per_beam]

    def _collect(self, best: Sequence[_Continuation], ends: Sequence[bool]) -> None:
        """Make results of those that end among the `num_beams` best; the rest are spare."""
        num_beams = self._params.num_beams
        for item, ended in zip(best[:num_beams], ends, strict=False):
            score = self._normalised(item.score, self._num_generated)
            if ended and score >= _BARRED:
                beam = self._extended(item)
                by_eos = item.token in self._eos_token_ids
                result = Hypothesis(beam.token_ids, beam.logprobs, score, by_eos)
                self._finished.append(result)
        self._finished.sort(key=_score, reverse=True)
        del self._finished[num_beams:]

    def _continue(self, best: Sequence[_Continuation], ends: Sequence[bool]) -> list[_Continuation]:
        """The next running beams: those that do not end first, then whatever there is."""
        chosen = [
            item._replace(score=item.score + _BARRED) if ended else item
            for item, ended in zip(best, ends, strict=True)
        ]
        chosen.sort(key=_score, reverse=True)
        del chosen[self._params.num_beams :]
        if chosen:
            impossible = chosen[0]._replace(score=-math.inf)
            chosen += [impossible] * (self._params.num_beams - len(chosen))
        self._beams = [self._extended(item) for item in chosen]
        return chosen

    def _extended(self, item: _Continuation) -> _Beam:
        beam = self._beams[item.parent]
        return _Beam(item.score, (*beam.token_ids, item.token), (*beam.logprobs, item.logprob))

    def _settled(self, best_running: float) -> bool:
        """Whether the results stand: enough of them, or no beam is thought to better the worst."""
        params = self._params
        full = len(self._finished) == params.num_beams
        if full and params.early_stopping is True:
            return True
        length = self._num_generated
        if params.early_stopping == "never" and params.length_penalty > 0:
            length = self._max_tokens
        worst = self._finished[-1].score if full else _BARRED
        return self._normalised(best_running, length) <= worst

    def _normalised(self, score: float, length: int) -> float:
        return score / float(length) ** self._params.length_penalty


def _score(item: _Continuation | Hypothesis) -> float:
    return item.score
