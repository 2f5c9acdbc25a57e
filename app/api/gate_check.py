"""Writes that an alias's gate may refuse: what lacks a score is scored, then written.

A score belongs to a version and a gate's measure, and either may change meanwhile: so the write
looks again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from starlette.types import Receive

from app.api.evaluate_version import EvaluationService, VersionEvaluation
from app.api.generation.generation import cancel_on_disconnect
from app.api.schemas.evaluations import DecodingFields, ExampleBody
from app.errors import Conflict
from app.registry.quality_gates import QualityGate, Unscored
from app.tenancy.auth.principal import Principal

Result = TypeVar("Result")

MEAN_LOGPROB = "mean_logprob"
"""The gate's metric that is minus the loss: more is better, as of every other."""
_TRIES = 4


async def write_when_scored(
    write: Callable[..., Awaitable[Result]],
    score_of: Callable[[str, QualityGate], Awaitable[float]],
    receive: Receive,
) -> Result:
    """What `write(scores=…)` answers, once it has the scores that it asks for.

    `score_of` computes the score of a version, named by its digest; no longer once the client,
    which `receive` listens to, has gone away: RequestCancelled. A write that has begun is waited
    for. Raises what both raise, and Conflict if the gate changes again and again meanwhile.
    """
    scores: dict[tuple[str, str], float] = {}
    for _ in range(_TRIES):
        try:
            return await write(scores=dict(scores))
        except Unscored as missing:
            gate, digests = missing.gate, missing.digests
        for digest in digests:
            scores[gate.measure, digest] = await cancel_on_disconnect(
                receive, score_of(digest, gate)
            )
    raise Conflict("the alias's gate is being changed; try again", param="alias")


async def version_score(
    evaluations: EvaluationService, principal: Principal, name: str, digest: str, gate: QualityGate
) -> float:
    """The score of one of the principal's versions by a gate."""
    async with evaluations.version(principal, name, digest, DecodingFields()) as evaluation:
        return await gate_score(evaluation, gate)


async def gate_score(evaluation: VersionEvaluation, gate: QualityGate) -> float:
    """The score of a version by a gate, with that version's own decoding defaults."""
    examples = [
        ExampleBody(input=example["input"], output=list(example["output"]))
        for example in gate.examples
    ]
    if gate.metric == MEAN_LOGPROB:
        return -(await evaluation.evaluate(examples, ["loss"])).loss
    return (await evaluation.evaluate(examples, [gate.metric])).score(gate.metric)
