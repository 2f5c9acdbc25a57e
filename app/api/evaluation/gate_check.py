"""Writes that an alias's gate may refuse: what lacks a score is scored, then written.

A score is one of a version by a gate's measure, so neither may change meanwhile: the write looks
again. Knows nothing about HTTP.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from starlette.types import Receive

from app.api.evaluation.version_scores import choose_version, judge_of, score
from app.api.generation.generation import cancel_on_disconnect
from app.api.generation.prefix_selection import PrefixSelection
from app.api.schemas.evaluations import DecodingFields, ExampleBody
from app.api.services import Services
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
    services: Services, principal: Principal, name: str, digest: str, gate: QualityGate
) -> float:
    """The score of one of the principal's versions by a gate."""
    choice = await choose_version(services, principal.tenant, name, digest)
    try:
        return await gate_score(services, principal, choice, gate)
    finally:
        choice.release()


async def gate_score(
    services: Services, principal: Principal, choice: PrefixSelection, gate: QualityGate
) -> float:
    """The score of the version that `choice` holds, with that version's own decoding defaults."""
    judge = judge_of(services, principal, choice, DecodingFields())
    examples = [ExampleBody(**_fields(example)) for example in gate.examples]
    if gate.metric == MEAN_LOGPROB:
        return -(await score(judge, examples, ["loss"])).scores["loss"]
    return (await score(judge, examples, [gate.metric])).scores[gate.metric]


def _fields(example: Any) -> dict[str, Any]:
    return {"input": example["input"], "output": list(example["output"])}
