"""What a model says to examples, alone or with a prefix, and how good that is.

A server, the command line and training share it; an `EvaluationRunner` says where it computes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from app.datasets.example import Example
from app.engine.config import EngineConfig
from app.engine.decoding.beam_search import beam_params
from app.engine.engine import Engine
from app.engine.offline import CompletedRequest, complete_all
from app.engine.request import GenerationRequest, SamplingParams
from app.errors import GenerationFault, InvalidRequest
from app.evaluation.likelihood import target_loss
from app.evaluation.metrics import Rouge, corpus_bleu, mean_rouge
from app.evaluation.text_pairs import TokenPair, default_template
from app.model.frozen import FrozenModel
from app.prefix.prefix import Prefix

Result = TypeVar("Result")

DEFAULT_MAX_TOKENS = 128
_TENANT = "evaluation"
OFFLINE = EngineConfig(max_rows=64, max_waiting=4096, kv_bytes=512 << 20)
"""The limits of an engine that serves nobody else."""
_PASSED_ON = (
    "min_tokens",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "no_repeat_ngram_size",
    "logit_bias",
)
_NEED_ANSWERS = frozenset({"exact_match", "bleu", "rouge_l"})
_MAX_ROUGE_WORK = 32_000_000
"""Words of references times tokens of answers: the longest common sequence takes so many steps."""


class EvaluationRunner(Protocol):
    """Where an evaluation computes: on an engine of its own, or in a server for a tenant."""

    async def complete(self, requests: Sequence[GenerationRequest]) -> list[CompletedRequest]:
        """Run the requests; answers in their order. Raises the error of one that fails."""

    async def compute(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """`work(*arguments)` beside the engine."""

    async def compute_each(
        self, work: Callable[..., Result], pieces: Sequence[tuple[Any, ...]], tokens: Sequence[int]
    ) -> list[Result]:
        """`work` on each piece beside the engine; piece by piece it reads so many `tokens`."""


@dataclass(frozen=True)
class DecodedText:
    """What the model said; `token_ids` has the token that ended it too."""

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Evaluation:
    """What a model said to examples and how good it was; empty or 0 where no metric asked for it.

    `loss` is in nats per target token, over `num_tokens` of them, and `losses` has that of each
    example. The other scores go from 0 to 100. `signature` says how BLEU was computed.
    """

    answers: Sequence[DecodedText] = ()
    matches: Sequence[bool] = ()
    losses: Sequence[float] = ()
    num_tokens: int = 0
    loss: float = 0.0
    bleu: float = 0.0
    signature: str = ""
    rouge: Rouge = Rouge()

    @property
    def texts(self) -> tuple[str, ...]:
        """What the model said to each example."""
        return tuple(answer.text for answer in self.answers)

    def score(self, metric: str) -> float:
        """The score by one of the metrics that were asked for."""
        if metric == "exact_match":
            return 100 * sum(self.matches) / len(self.matches)
        return {"loss": self.loss, "bleu": self.bleu, "rouge_l": self.rouge.rougeL}[metric]


@dataclass(frozen=True)
class Evaluator:
    """A base model at work on examples, with `prefix` if there is one.

    It decodes greedily or by beams, as `options` say, else the prefix, else the model's generation
    config; options that draw at random are ignored.
    """

    model: FrozenModel
    prefix: Prefix | None
    runner: EvaluationRunner
    options: Mapping[str, Any] = field(default_factory=dict)

    async def answers(self, prompts: Sequence[tuple[int, ...]]) -> list[DecodedText]:
        """What the model says to each prompt, stripped of surrounding space."""
        done = await self._complete(prompts, [self._sampling(len(ids)) for ids in prompts])
        return [DecodedText(one.texts[0].strip(), tuple(one.token_ids[0])) for one in done]

    async def losses(self, pairs: Sequence[TokenPair]) -> list[float]:
        """Each target's negative log-probability in nats, summed over its tokens."""
        if self.model.encoder_decoder is not None:
            pieces = [(self.model, self.prefix, pair) for pair in pairs]
            return await self.runner.compute_each(
                target_loss, pieces, [len(pair) for pair in pairs]
            )
        scoring = SamplingParams(max_tokens=0, logprobs=0)
        texts = [pair.prompt_ids + pair.target_ids for pair in pairs]
        done = await self._complete(texts, [scoring] * len(pairs))
        return [_loss(one, pair) for one, pair in zip(done, pairs, strict=True)]

    async def evaluate(
        self,
        prompts: Sequence[tuple[int, ...]],
        references: Sequence[Sequence[str]],
        metrics: Collection[str],
        pairs: Sequence[Sequence[TokenPair]] = (),
    ) -> Evaluation:
        """Scores by `metrics`, of which only what they need is computed.

        `references` are the right answers to each prompt; `pairs`, which "loss" needs, have each
        prompt with each of them.
        """
        found: dict[str, Any] = {}
        if not _NEED_ANSWERS.isdisjoint(metrics):
            found["answers"] = await self.answers(prompts)
            texts = [answer.text for answer in found["answers"]]
            if "exact_match" in metrics:
                found["matches"] = [
                    text in {reference.strip() for reference in accepted}
                    for text, accepted in zip(texts, references, strict=True)
                ]
            if "bleu" in metrics:
                bleu = await self.runner.compute(corpus_bleu, texts, references)
                found["bleu"], found["signature"] = bleu
            if "rouge_l" in metrics:
                found["rouge"] = await self.runner.compute(mean_rouge, texts, references)
        if "loss" in metrics:
            nats = iter(await self.losses([pair for group in pairs for pair in group]))
            sums = [sum(next(nats) for _ in group) for group in pairs]
            counts = [sum(len(pair.target_ids) for pair in group) for group in pairs]
            found["losses"] = [loss / count for loss, count in zip(sums, counts, strict=True)]
            found["num_tokens"] = sum(counts)
            found["loss"] = sum(sums) / sum(counts)
        return Evaluation(**found)

    def check_rouge_work(
        self, prompts: Sequence[tuple[int, ...]], references: Sequence[Sequence[str]]
    ) -> None:
        """InvalidRequest if ROUGE of what may be answered would take too long."""
        work = sum(
            self.max_tokens(len(ids)) * sum(len(text.split()) for text in accepted)
            for ids, accepted in zip(prompts, references, strict=True)
        )
        if work > _MAX_ROUGE_WORK:
            raise InvalidRequest(
                f"rouge_l would compare {work} pairs of words, at most {_MAX_ROUGE_WORK} are "
                "taken: give fewer examples, shorter outputs or a smaller max_tokens",
                param="metrics",
            )

    def max_tokens(self, num_prompt: int) -> int:
        """New tokens for a prompt: as asked, else as the prefix says, cut to what fits."""
        offset = 0 if self.prefix is None else self.prefix.metadata.position_offset
        room = self.model.spec.context_limit - offset - self._num_before(num_prompt)
        return max(1, min(int(self._decoding.get("max_tokens", DEFAULT_MAX_TOKENS)), room))

    @property
    def _decoding(self) -> dict[str, Any]:
        own = {} if self.prefix is None else self.prefix.metadata.decoding
        return {**self.model.generation.decoding, **own, **self.options}

    def _num_before(self, num_prompt: int) -> int:
        """Tokens before the first new one: the prompt, or behind an encoder the start token."""
        return num_prompt if self.model.encoder_decoder is None else 1

    def _sampling(self, num_prompt: int) -> SamplingParams:
        decoding = {"min_tokens": self.model.min_tokens(num_prompt), **self._decoding}
        return SamplingParams(
            max_tokens=self.max_tokens(num_prompt),
            stop=tuple(decoding.get("stop", ())),
            beam=beam_params(decoding),
            **{name: decoding[name] for name in _PASSED_ON if name in decoding},
        )

    async def _complete(
        self, prompts: Sequence[tuple[int, ...]], sampling: Sequence[SamplingParams]
    ) -> list[CompletedRequest]:
        return await self.runner.complete(
            [
                GenerationRequest(
                    id=f"{_TENANT}-{number}",
                    tenant=_TENANT,
                    prompt_ids=ids,
                    sampling=chosen,
                    prefixes=() if self.prefix is None else (self.prefix,),
                    echo=chosen.logprobs is not None,
                    whole=True,
                )
                for number, (ids, chosen) in enumerate(zip(prompts, sampling, strict=True))
            ]
        )


def _loss(scored: CompletedRequest, pair: TokenPair) -> float:
    logprobs = [score.logprob for score in scored.prompt_scores[len(pair.prompt_ids) :]]
    known = [value for value in logprobs if value is not None]
    if len(known) != len(pair.target_ids):
        raise GenerationFault("not every token of the target was scored")
    return -sum(known)


@dataclass(frozen=True)
class EngineRunner:
    """Computes on a started engine and in the caller's thread."""

    engine: Engine

    async def complete(self, requests: Sequence[GenerationRequest]) -> list[CompletedRequest]:
        """All requests together."""
        return await complete_all(self.engine, requests)

    async def compute(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """At once."""
        return work(*arguments)

    async def compute_each(
        self, work: Callable[..., Result], pieces: Sequence[tuple[Any, ...]], _: Sequence[int]
    ) -> list[Result]:
        """One piece after another."""
        return [work(*piece) for piece in pieces]


@contextmanager
def running_engine(model: FrozenModel, config: EngineConfig = OFFLINE) -> Iterator[Engine]:
    """An engine for offline work, stopped at the end of the block."""
    engine = Engine(model, config)
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


def evaluate(
    engine: Engine,
    examples: Sequence[Example],
    *,
    prefix: Prefix | None = None,
    template: str | None = None,
    decoding: Mapping[str, Any] | None = None,
    runner: EvaluationRunner | None = None,
) -> Evaluation:
    """Texts for all `examples` on a started engine, and their BLEU and ROUGE.

    Template and decoding defaults are the prefix's own unless they are given. Texts are no longer
    than the context, and sources are cut to what an encoder reads. `runner` is how the engine is
    used: by default it gets all requests at once.
    """
    runner = runner or EngineRunner(engine)
    evaluator = Evaluator(engine.model, prefix, runner, decoding or {})
    references = [example.targets for example in examples]
    prompts = _prompts(engine, examples, prefix, template)
    return asyncio.run(evaluator.evaluate(prompts, references, ("bleu", "rouge_l")))


def decode_texts(
    engine: Engine,
    examples: Sequence[Example],
    *,
    prefix: Prefix | None = None,
    template: str | None = None,
    decoding: Mapping[str, Any] | None = None,
    max_source: int = 0,
) -> tuple[str, ...]:
    """What the model says to each example, as in `evaluate`, which scores it too.

    `max_source`: tokens of a source that an encoder reads (0: as many as it can).
    """
    evaluator = Evaluator(engine.model, prefix, EngineRunner(engine), decoding or {})
    prompts = _prompts(engine, examples, prefix, template, max_source)
    answers = asyncio.run(evaluator.answers(prompts))
    return tuple(answer.text for answer in answers)


def _prompts(
    engine: Engine,
    examples: Sequence[Example],
    prefix: Prefix | None,
    template: str | None,
    max_source: int = 0,
) -> list[tuple[int, ...]]:
    model, text = engine.model, engine.model.text
    own_template = prefix.metadata.input_template if prefix is not None else None
    has_encoder = model.encoder_decoder is not None
    used = template or own_template or default_template(text, has_encoder=has_encoder)
    room = model.source_room(max_source)
    return [text.cut_source(text.render(used, example.input), room) for example in examples]
