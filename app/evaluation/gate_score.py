"""A version's score by a quality gate, wherever it is computed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

from app.datasets.example import Example
from app.evaluation.evaluator import Evaluation, Evaluator
from app.evaluation.text_pairs import TokenPair, written_target

MEAN_LOGPROB = "mean_logprob"
"""A gate's metric that is minus the loss: more is better, as of every other."""


async def gate_score(
    metric: str, evaluate: Callable[[Collection[str]], Awaitable[Evaluation]]
) -> float:
    """The score by a gate's `metric`; `evaluate` computes the metrics that it is asked for."""
    if metric == MEAN_LOGPROB:
        return -(await evaluate(["loss"])).loss
    return (await evaluate([metric])).score(metric)


def gate_examples(examples: Sequence[Mapping[str, Any]]) -> list[Example]:
    """The examples of a gate; each has an `input` and one `output` or a list of them."""
    made = []
    for number, one in enumerate(examples):
        output = one["output"]
        made.append(
            Example(one["input"], (output,) if isinstance(output, str) else (*output,), number)
        )
    return made


async def score_examples(
    evaluator: Evaluator, template: str, examples: Sequence[Example], metric: str
) -> float:
    """The score of the evaluator's prefix by a gate's `metric`; inputs go through `template`.

    Raises InvalidRequest if an input or an output is no text that the model can read.
    """
    model = evaluator.model
    prompts = [
        model.text.cut_source(model.text.render(template, example.input), model.spec.source_limit)
        for example in examples
    ]
    pairs = [
        [TokenPair(prompt, written_target(model, target)) for target in example.targets]
        for prompt, example in zip(prompts, examples, strict=True)
    ]
    references = [example.targets for example in examples]

    async def evaluate(metrics: Collection[str]) -> Evaluation:
        return await evaluator.evaluate(prompts, references, metrics, pairs)

    return await gate_score(metric, evaluate)
