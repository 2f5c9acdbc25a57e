"""Self-made exchanges about the parts of a text: what the frozen model asks and answers.

There are four kinds. `recall`: the answer is the text's own next sentences. `question`: the model
writes a question about the part, then answers it. `request`: the model follows a fixed request.
`continuation`: the model goes on from the end of a sentence. Chat models have the first three, the
others have no `request`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from app.engine.engine import Engine
from app.engine.offline import complete
from app.engine.request import GenerationRequest, SamplingParams
from app.errors import InvalidRequest
from app.model.frozen import FrozenModel
from app.prefix.prefix import Prefix, PrefixMetadata
from app.training.distillation.document import TextPart
from app.training.distillation.framing import Framing
from app.training.distillation.seeds import (
    ANSWER_STEM,
    QUESTION_REQUESTS,
    QUESTION_STEM,
    RECALL_REQUEST,
    REQUESTS,
)
from app.training.words import words_prefix

_TENANT = "distillation"
_WAVE = 32
"""Requests that are decoded together."""
_QUESTION_TOKENS = 40
_STOPS = ("\n",)
_CHAT_KINDS = ("recall", "question", "recall", "question", "request", "question")
_PLAIN_KINDS = ("recall", "question", "recall", "continuation")


@dataclass(frozen=True)
class TextExchange:
    """A prompt and an answer about part number `part`, as tokens behind the part's context."""

    part: int
    kind: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]


@dataclass(frozen=True)
class ExchangeSettings:
    """How exchanges are made: `count` of all parts together, of limited length in tokens.

    `temperature` and `top_p` are those of questions, requests and continuations; answers to
    questions are greedy. The same seed gives the same exchanges.
    """

    count: int
    max_prompt: int = 80
    max_answer: int = 48
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 101


@dataclass(frozen=True)
class _Draft:
    """A prompt that waits for its answer. `sampled`: the answer is drawn, not greedy."""

    kind: str
    prompt_ids: tuple[int, ...]
    sampled: bool
    one_line: bool = False


class ExchangeMaker:
    """Makes exchanges about parts on a started engine, one part after another."""

    def __init__(self, engine: Engine, framing: Framing, settings: ExchangeSettings) -> None:
        self._engine, self._framing, self._settings = engine, framing, settings
        self._model: FrozenModel = engine.model
        self._made = 0
        self._between: Callable[[], None] = lambda: None

    def all_of(
        self, parts: Sequence[TextPart], report: Callable[[int, int], None]
    ) -> list[TextExchange]:
        """The exchanges about all parts, without repeats.

        `report` gets the number of parts done and of all, again and again; what it raises ends the
        work. InvalidRequest if there are fewer than two exchanges.
        """
        found: dict[tuple[tuple[int, ...], tuple[int, ...]], TextExchange] = {}
        for number, part in enumerate(parts):
            self._between = partial(report, number, len(parts))
            share = self._settings.count * (number + 1) // len(parts)
            count = max(1, share - self._settings.count * number // len(parts))
            for exchange in self._of(number, part, count):
                found.setdefault((exchange.prompt_ids, exchange.answer_ids), exchange)
        report(len(parts), len(parts))
        if len(found) < 2:
            raise InvalidRequest(
                "the model wrote no two different exchanges about the text; give a longer text,"
                " more exchanges, or a base model that can write"
            )
        return list(found.values())

    def _of(self, number: int, part: TextPart, count: int) -> list[TextExchange]:
        rng = random.Random(f"{self._settings.seed}:exchanges:{number}")
        kinds = _CHAT_KINDS if self._framing.chat else _PLAIN_KINDS
        wanted = [kinds[index % len(kinds)] for index in range(count)]
        made = [self._recall(number, part, rng) for kind in wanted if kind == "recall"]
        context = self._context(part)
        drafts = self._questions(context, part, wanted.count("question"), rng)
        for kind in wanted:
            if kind == "request":
                ids = self._framing_ids(rng.choice(REQUESTS))
                drafts.append(_Draft(kind, ids, sampled=True))
            elif kind == "continuation":
                tail = rng.choice(part.sentences).token_ids[-self._settings.max_prompt :]
                drafts.append(_Draft(kind, tail, sampled=True))
        settings = self._settings
        drafts = [draft for draft in drafts if 0 < len(draft.prompt_ids) <= settings.max_prompt]
        answers = self._complete(
            context,
            [draft.prompt_ids for draft in drafts],
            [
                self._sampling(rng, settings.max_answer, draft.sampled, one_line=draft.one_line)
                for draft in drafts
            ],
        )
        made += [
            TextExchange(number, draft.kind, draft.prompt_ids, ids[: settings.max_answer])
            for draft, (_, ids) in zip(drafts, answers, strict=True)
        ]
        return [exchange for exchange in made if exchange.answer_ids]

    def _recall(self, number: int, part: TextPart, rng: random.Random) -> TextExchange:
        """A sentence of the part, or some of its tokens, and what follows in the part."""
        settings, sentences = self._settings, part.sentences
        at = rng.randrange(max(1, len(sentences) - 1))
        if self._framing.chat and len(sentences) > 1:
            quoted = self._framing_ids(RECALL_REQUEST.format(sentences[at].text.strip()))
            if len(quoted) <= settings.max_prompt:
                follows = [token for each in sentences[at + 1 :] for token in each.token_ids]
                return TextExchange(number, "recall", quoted, tuple(follows[: settings.max_answer]))
        ids = part.token_ids
        before = rng.randrange(1, max(2, min(settings.max_prompt, len(ids) // 2)))
        start = rng.randrange(max(1, len(ids) - before - 1))
        end = start + before
        follows = list(ids[end : end + settings.max_answer])
        return TextExchange(number, "recall", ids[start:end], tuple(follows))

    def _questions(
        self, context: Prefix, part: TextPart, count: int, rng: random.Random
    ) -> list[_Draft]:
        """Questions that the model writes about a sentence of the part or the whole."""
        if not count:
            return []
        stems = []
        for _ in range(count):
            quoted = rng.choice(part.sentences).text.strip()
            asked = rng.choice(QUESTION_REQUESTS).format(quoted)
            stem = self._framing_ids(asked)
            plain = self._framing_ids(QUESTION_STEM)
            stems.append(stem if self._framing.chat else plain)
        longest = self._settings.max_prompt * 2
        whole = self._framing_ids(QUESTION_REQUESTS[0])
        stems = [stem if len(stem) <= longest else whole for stem in stems]
        sampling = [
            self._sampling(rng, _QUESTION_TOKENS, drawn=True, one_line=True) for _ in range(count)
        ]
        written = self._complete(context, stems, sampling)
        questions = [text.strip().strip('"“”').strip() for text, _ in written]
        if self._framing.chat:
            return [
                _Draft("question", self._framing_ids(question), sampled=False)
                for question in questions
                if question
            ]
        return [
            _Draft("question", self._framing_ids(filled), sampled=False, one_line=True)
            for question in questions
            if (filled := f"{QUESTION_STEM} {question}{ANSWER_STEM}") and question
        ]

    def _framing_ids(self, prompt: str) -> tuple[int, ...]:
        return tuple(self._model.text.render(self._framing.prompt, prompt))

    def _context(self, part: TextPart) -> Prefix:
        """The part's context as keys and values, which act as if its tokens were in the prompt."""
        ids = self._framing.context_ids(self._model.text, part.token_ids)
        made = words_prefix(self._model, ids, PrefixMetadata(position_offset=len(ids)))
        return made.to(self._model.device, self._model.dtype)

    def _sampling(
        self, rng: random.Random, max_tokens: int, drawn: bool, *, one_line: bool = False
    ) -> SamplingParams:
        stop = _STOPS if one_line else ()
        seed = rng.randrange(1 << 31)
        if not drawn:
            return SamplingParams(max_tokens=max_tokens, stop=stop, seed=seed)
        settings = self._settings
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            stop=stop,
            seed=seed,
        )

    def _complete(
        self,
        context: Prefix,
        prompts: Sequence[tuple[int, ...]],
        sampling: Sequence[SamplingParams],
    ) -> list[tuple[str, tuple[int, ...]]]:
        """Text and tokens for each prompt behind the context; an end token is among the tokens."""
        requests = []
        for prompt, chosen in zip(prompts, sampling, strict=True):
            self._made += 1
            requests.append(
                GenerationRequest(
                    id=f"{_TENANT}-{self._made}",
                    tenant=_TENANT,
                    prompt_ids=prompt,
                    sampling=chosen,
                    prefixes=(context,),
                    whole=True,
                )
            )
        done = []
        for start in range(0, len(requests), _WAVE):
            self._between()
            done += complete(self._engine, requests[start : start + _WAVE])
        return [(one.texts[0], tuple(one.token_ids[0])) for one in done]
