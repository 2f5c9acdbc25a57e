"""A version's scores on examples: loss, exact matches, BLEU and ROUGE-L.

Knows nothing about replies or about how answers are made.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial

from app.api.evaluation.evaluator import Answer, Evaluator, borrow
from app.api.generation.prefix_selection import PrefixSelection, choose
from app.api.schemas.evaluations import DecodingFields, ExampleBody
from app.api.services import Services
from app.errors import InvalidRequest
from app.evaluation.metrics import corpus_bleu, mean_rouge
from app.evaluation.text_pairs import TokenPair
from app.tenancy.auth.principal import Principal

_WORDS = frozenset({"exact_match", "bleu", "rouge_l"})
"""Metrics that need answers."""
_MAX_ROUGE_WORK = 32_000_000
"""Words of references times tokens of answers: the longest common sequence takes so many steps."""


@dataclass(frozen=True)
class Scored:
    """What an evaluation found, over all examples and for each of them.

    `loss` is in nats per target token, over `num_tokens` of them; the others go from 0 to 100.
    """

    scores: dict[str, float]
    answers: list[Answer] | None
    losses: list[float] | None
    matches: list[bool] | None
    num_tokens: int | None
    signature: str | None


def judge_of(
    services: Services, principal: Principal, choice: PrefixSelection, options: DecodingFields
) -> Evaluator:
    """A judge of the one version that `choice` holds, with the request's time before it."""
    longest = services.limits.request_timeout
    deadline = time.monotonic() + min(options.timeout or longest, longest)
    return Evaluator(services, principal, borrow(choice), options, deadline)


async def choose_version(
    services: Services, tenant: str, name: str, selector: str
) -> PrefixSelection:
    """The tenant's own version `selector` of prefix `name`, leased; raises what `choose` raises."""
    # as a list, so that it is never taken for the base model
    return await choose(services, tenant, None, [f"{name}@{selector}"])


async def score(
    judge: Evaluator, examples: Sequence[ExampleBody], metrics: Collection[str]
) -> Scored:
    """Scores by `metrics`, of which only what they need is computed."""
    prompts = await judge.prompts([example.input for example in examples])
    size = sum(len(text) for example in examples for text in example.references)
    if "rouge_l" in metrics:
        await judge.aside(size, _check_rouge, judge, prompts, examples)
    pairs = None
    if "loss" in metrics:
        pairs = await judge.aside(size, _pairs, judge, prompts, examples)
    scores: dict[str, float] = {}
    answers = matches = losses = num_tokens = signature = None
    if not _WORDS.isdisjoint(metrics):
        answers = await judge.answers(prompts)
        texts, references = [one.text for one in answers], [one.references for one in examples]
        if "exact_match" in metrics:
            matches = [
                text in {reference.strip() for reference in accepted}
                for text, accepted in zip(texts, references, strict=True)
            ]
            scores["exact_match"] = 100 * sum(matches) / len(matches)
        run = partial(judge.services.aside.run, judge.principal.tenant, judge.deadline)
        if "bleu" in metrics:
            scores["bleu"], signature = await run(corpus_bleu, texts, references)
        if "rouge_l" in metrics:
            scores["rouge_l"] = (await run(mean_rouge, texts, references)).rougeL
    if pairs is not None:
        losses, num_tokens, scores["loss"] = await _losses(judge, pairs)
    ordered = {metric: scores[metric] for metric in metrics}
    return Scored(ordered, answers, losses, matches, num_tokens, signature)


def _pairs(
    judge: Evaluator, prompts: Sequence[tuple[int, ...]], examples: Sequence[ExampleBody]
) -> list[list[TokenPair]]:
    """For each example a pair per reference, as in training."""
    return [
        [judge.pair(at, prompts[at], reference) for reference in example.references]
        for at, example in enumerate(examples)
    ]


async def _losses(
    judge: Evaluator, pairs: Sequence[Sequence[TokenPair]]
) -> tuple[list[float], int, float]:
    """Loss per token of each example, the number of all tokens, and the loss per token of all."""
    found = iter(await judge.losses([pair for group in pairs for pair in group]))
    sums = [sum(next(found) for _ in group) for group in pairs]
    counts = [sum(len(pair.target_ids) for pair in group) for group in pairs]
    means = [loss / count for loss, count in zip(sums, counts, strict=True)]
    return means, sum(counts), sum(sums) / sum(counts)


def _check_rouge(
    judge: Evaluator, prompts: Sequence[tuple[int, ...]], examples: Sequence[ExampleBody]
) -> None:
    work = sum(
        judge.max_tokens(len(ids)) * sum(len(text.split()) for text in example.references)
        for ids, example in zip(prompts, examples, strict=True)
    )
    if work > _MAX_ROUGE_WORK:
        raise InvalidRequest(
            f"rouge_l would compare {work} pairs of words, at most {_MAX_ROUGE_WORK} are taken: "
            "give fewer examples, shorter outputs or a smaller max_tokens",
            param="metrics",
        )
