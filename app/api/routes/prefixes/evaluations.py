"""`POST /v1/prefixes/{name}/evaluate`: score a version on examples."""

from __future__ import annotations

from fastapi import Request, Response

from app.api.dependencies import EvaluationsDep, PrincipalDep
from app.api.generation.generation import cancel_on_disconnect
from app.api.routing import JSON, Answer, Router
from app.api.schemas.evaluations import EvaluateBody, EvaluationReply, ScoredExampleReply
from app.evaluation.evaluator import Scored
from app.prefix.reference import check_name
from app.tenancy.auth.principal import Scope

router = Router("judging")


@router.route(
    "POST",
    "/v1/prefixes/{name}/evaluate",
    answers=Answer({JSON: EvaluationReply}, ("x-prefix-version", "x-prefix-tier")),
    scopes=[Scope.GENERATE, Scope.PREFIXES_READ],
    audited=False,
    errors=[409, 504],
)
async def evaluate_version(
    name: str,
    body: EvaluateBody,
    request: Request,
    evaluations: EvaluationsDep,
    principal: PrincipalDep,
) -> Response:
    """Scores of one version: loss in nats per target token, the other metrics from 0 to 100.

    The version's template is applied, and its decoding defaults but for what is drawn at random.
    """
    check_name(name)
    metrics = list(dict.fromkeys(body.metrics))
    with evaluations.cap.slot(principal.tenant):
        async with evaluations.version(principal, name, body.version, body) as evaluation:
            scoring = evaluation.score(body.examples, metrics)
            scored = await cancel_on_disconnect(request.receive, scoring)
    return EvaluationReply(
        name=name,
        version=evaluation.selection.digests[0],
        scores=scored.scores,
        num_examples=len(body.examples),
        num_target_tokens=scored.num_tokens,
        bleu_signature=scored.signature,
        examples=[_example(scored, at) for at in range(len(body.examples))],
    ).response(headers=evaluation.selection.headers)


def _example(scored: Scored, at: int) -> ScoredExampleReply:
    """What is known of one example."""
    return ScoredExampleReply(
        output=None if scored.answers is None else scored.answers[at].text,
        exact_match=None if scored.matches is None else scored.matches[at],
        loss=None if scored.losses is None else scored.losses[at],
    )
