"""`POST /v1/prefixes/{name}/evaluate`: score a version on examples."""

from __future__ import annotations

from fastapi import Request, Response

from app.api.dependencies import EvaluationsDep, PrincipalDep
from app.api.generation.generation import cancel_on_disconnect
from app.api.routing import JSON, Answer, Router
from app.api.schemas.evaluations import EvaluateBody, EvaluationReply, ScoredExampleReply
from app.evaluation.evaluator import Evaluation
from app.prefix.reference import check_name
from app.tenancy.auth.principal import Scope

router = Router("evaluations")


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
            evaluating = evaluation.evaluate(body.examples, metrics)
            found = await cancel_on_disconnect(request.receive, evaluating)
    return EvaluationReply(
        name=name,
        version=evaluation.selection.digests[0],
        scores={metric: found.score(metric) for metric in metrics},
        num_examples=len(body.examples),
        num_target_tokens=found.num_tokens or None,
        bleu_signature=found.signature or None,
        examples=[_example(found, at) for at in range(len(body.examples))],
    ).response(headers=evaluation.selection.headers)


def _example(found: Evaluation, at: int) -> ScoredExampleReply:
    """What is known of one example."""
    return ScoredExampleReply(
        output=found.answers[at].text if found.answers else None,
        exact_match=found.matches[at] if found.matches else None,
        loss=found.losses[at] if found.losses else None,
    )
