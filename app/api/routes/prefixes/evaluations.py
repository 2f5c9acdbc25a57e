"""`POST /v1/prefixes/{name}/evaluate` and `…/compare`: one version on examples, or two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response

from app.api.dependencies import EvaluationsDep, PrincipalDep
from app.api.evaluate_version import VersionEvaluation
from app.api.generation.generation import cancel_on_disconnect
from app.api.routing import JSON, Answer, Router
from app.api.schemas.evaluations import (
    CompareBody,
    ComparedBody,
    ComparisonReply,
    EvaluateBody,
    EvaluationReply,
    ScoredExampleReply,
)
from app.evaluation.evaluator import DecodedText, Evaluation
from app.evaluation.likelihood import Contrast, contrast
from app.evaluation.text_pairs import TokenPair
from app.prefix.reference import check_name
from app.tenancy.auth.principal import Scope

_Pairs = tuple[TokenPair, TokenPair]

router = Router("evaluations", "/v1/prefixes/{name}")

_SCOPES = [Scope.GENERATE, Scope.PREFIXES_READ]


@router.route(
    "POST",
    "/evaluate",
    answers=Answer({JSON: EvaluationReply}, ("x-prefix-version", "x-prefix-tier")),
    scopes=_SCOPES,
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


@dataclass(frozen=True)
class _Compared:
    """One example: what both said, and how far they are apart over the target, if there is one."""

    a: DecodedText
    b: DecodedText
    has_output: bool
    contrast: Contrast | None

    @property
    def content(self) -> dict[str, Any]:
        """As replies show it: per token; losses of an output that was given alone."""
        sums = self.contrast
        count = 0 if sums is None else sums.num_tokens
        judged = sums if self.has_output else None
        return {
            "a": {"output": self.a.text, "loss": judged and judged.loss_a / count},
            "b": {"output": self.b.text, "loss": judged and judged.loss_b / count},
            "same_output": self.a.text == self.b.text,
            "target": "output" if self.has_output else "a",
            "num_target_tokens": count,
            "kl_ab": sums and sums.kl_ab / count,
            "kl_ba": sums and sums.kl_ba / count,
        }


@router.route(
    "POST",
    "/compare",
    answers=ComparisonReply,
    scopes=_SCOPES,
    audited=False,
    errors=[409, 504],
)
async def compare_versions(
    name: str,
    body: CompareBody,
    request: Request,
    evaluations: EvaluationsDep,
    principal: PrincipalDep,
) -> Response:
    """Outputs, losses and KL divergences of two versions, in nats per target token.

    The target is the example's output or, where none is given, what `a` says.
    """
    check_name(name)
    with evaluations.cap.slot(principal.tenant):
        async with (
            evaluations.version(principal, name, body.a, body) as a,
            evaluations.version(principal, name, body.b, body) as b,
        ):
            comparing = _compare(a, b, body.examples)
            compared = await cancel_on_disconnect(request.receive, comparing)
    return ComparisonReply(
        name=name,
        a=a.selection.digests[0],
        b=b.selection.digests[0],
        **_summary(compared),
        examples=[one.content for one in compared],
    ).response()


async def _compare(
    a: VersionEvaluation, b: VersionEvaluation, examples: Sequence[ComparedBody]
) -> list[_Compared]:
    inputs = [one.input for one in examples]
    reads_a, reads_b = await a.prompts(inputs), await b.prompts(inputs)
    size = sum(len(one.output or "") for one in examples)
    given = await a.off_loop(2 * size, _given, a, b, reads_a, reads_b, examples)
    said_a = await a.evaluator.answers(reads_a)
    # one version says one thing, whatever else is computed at the time
    same = a.prefix.digest == b.prefix.digest
    said_b = said_a if same else await b.evaluator.answers(reads_b)
    targets = list(given)
    for at, pairs in enumerate(given):
        if pairs is None and said_a[at].token_ids:
            said = said_a[at].token_ids
            targets[at] = (
                a.fitting(at, TokenPair(reads_a[at], said)),
                b.fitting(at, TokenPair(reads_b[at], said)),
            )
    contrasts = iter(await _contrasts(a, b, [pairs for pairs in targets if pairs is not None]))
    return [
        _Compared(
            said_a[at],
            said_b[at],
            has_output=given[at] is not None,
            contrast=None if pairs is None else next(contrasts),
        )
        for at, pairs in enumerate(targets)
    ]


def _given(
    a: VersionEvaluation,
    b: VersionEvaluation,
    reads_a: Sequence[tuple[int, ...]],
    reads_b: Sequence[tuple[int, ...]],
    examples: Sequence[ComparedBody],
) -> list[_Pairs | None]:
    """The targets that were given, as each version reads them."""
    return [
        None
        if one.output is None
        else (a.pair(at, reads_a[at], one.output), b.pair(at, reads_b[at], one.output))
        for at, one in enumerate(examples)
    ]


async def _contrasts(
    a: VersionEvaluation, b: VersionEvaluation, targets: Sequence[_Pairs]
) -> list[Contrast]:
    pieces = [(a.generations.model, a.prefix, b.prefix, *pairs) for pairs in targets]
    return await a.compute_each(contrast, pieces, [sum(map(len, pairs)) for pairs in targets])


def _summary(compared: Sequence[_Compared]) -> dict[str, Any]:
    """Means per token over all targets, and over those that were given for losses."""
    found = [one.contrast for one in compared if one.contrast is not None]
    judged = [one.contrast for one in compared if one.contrast is not None and one.has_output]
    tokens = sum(sums.num_tokens for sums in found)
    judged_tokens = sum(sums.num_tokens for sums in judged)
    return {
        "loss_a": sum(sums.loss_a for sums in judged) / judged_tokens if judged else None,
        "loss_b": sum(sums.loss_b for sums in judged) / judged_tokens if judged else None,
        "kl_ab": sum(sums.kl_ab for sums in found) / tokens if found else None,
        "kl_ba": sum(sums.kl_ba for sums in found) / tokens if found else None,
        "same_outputs": sum(one.a.text == one.b.text for one in compared),
        "num_examples": len(compared),
    }
