"""A version at work on examples: prompts, answers and the probability of targets.

Answers, and targets where the engine can score them, run through the engine as this tenant's
ordinary requests, a few at a time; other targets beside it. Knows nothing about metrics or the
shapes of replies.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from app.api.generation.beam_options import choose_beams
from app.api.generation.generation import Generation, Job
from app.api.generation.prefix_selection import PrefixSelection
from app.api.generation.prompts import check_text, encode_prompts
from app.api.generation.sampling import num_before, room_for, sampling_params
from app.api.schemas.evaluations import DecodingFields
from app.api.schemas.generation import SamplingFields
from app.api.services import Services
from app.api.side_work.metered import Account, Piece, beside
from app.api.side_work.off_loop import off_loop
from app.engine.request import PromptScored, SamplingParams, TextDelta
from app.errors import ContextLengthExceeded, DeadlineExceeded, GenerationFault, InvalidRequest
from app.evaluation.likelihood import target_loss
from app.evaluation.text_pairs import TokenPair, answered_target, continued_target
from app.prefix.prefix import Prefix
from app.tenancy.auth.principal import Principal

Result = TypeVar("Result")

DEFAULT_MAX_TOKENS = 128
_MAX_WAVE_ROWS = 32
"""Rows that one evaluation has in the engine: it takes longer, and its tenant can do more."""
_GREEDY = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}


@dataclass(frozen=True)
class Answer:
    """What a version said; `token_ids` has the token that ended it too."""

    text: str
    token_ids: tuple[int, ...]


@dataclass
class Borrowed(PrefixSelection):
    """A choice of prefixes that somebody else keeps on the device for as long as it is used."""

    kept: tuple[Prefix, ...] = ()

    @property
    def prefixes(self) -> tuple[Prefix, ...]:
        """The prefixes on the device."""
        return self.kept


def borrow(choice: PrefixSelection) -> Borrowed:
    """The choice for any number of generations; whoever leased its prefixes releases them."""
    return Borrowed(
        choice.model_field,
        digests=list(choice.digests),
        names=list(choice.names),
        kept=choice.prefixes,
    )


@dataclass
class _Heard:
    """What has come of one job."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)


@dataclass(frozen=True)
class Evaluator:
    """One version under one request: its caller, its options and its deadline.

    `choice` holds exactly one prefix; `deadline` is on the clock of `time.monotonic`.
    """

    services: Services
    principal: Principal
    choice: Borrowed
    options: DecodingFields
    deadline: float

    @property
    def prefix(self) -> Prefix:
        """The version's tensors, on the device."""
        return self.choice.kept[0]

    async def prompts(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Token ids of the examples' inputs, exactly as a completion would read them.

        InvalidRequest names the example.
        """
        spec = self.services.model.spec
        if self.options.truncate and spec.source_limit is None:
            raise InvalidRequest(
                "truncate cuts what an encoder reads, and this model has none: shorten the inputs",
                param="truncate",
            )
        cut_to = spec.source_limit if self.options.truncate else None
        if cut_to is None:
            for number, text in enumerate(texts):
                with _about(number, "input"):
                    check_text(self.services, text)
        found = await encode_prompts(
            self.services,
            self.principal.tenant,
            self.choice,
            texts,
            raw=self.options.raw,
            cut_to=cut_to,
        )
        for number, ids in enumerate(found):
            with _about(number, "input"):
                if not ids:
                    raise InvalidRequest("the prompt has no tokens")
                room_for(self.services, self.choice, len(ids))
        return found

    async def aside(self, size: int, work: Callable[..., Result], *arguments: Any) -> Result:
        """`work(*arguments)` on texts of `size` characters, off the event loop unless short."""
        return await off_loop(self.services, self.principal.tenant, size, work, *arguments)

    def pair(self, number: int, prompt_ids: tuple[int, ...], target: str) -> TokenPair:
        """A prompt with a target, exactly as prefixes are trained on them."""
        text, start = self.services.model.text, self.services.model.start_tokens
        with _about(number, "output"):
            check_text(self.services, target)
            written = (
                continued_target(text, target)
                if start is None
                else answered_target(text, target, start.forced_first)
            )
        return self.fitting(number, TokenPair(prompt_ids, written))

    def fitting(self, number: int, pair: TokenPair) -> TokenPair:
        """The pair, if prefix, prompt and target fit the context; ContextLengthExceeded."""
        spec = self.services.model.spec
        offset = self.prefix.metadata.position_offset
        taken = len(pair) if spec.source_limit is None else len(pair.target_ids)
        if offset + taken > spec.context_limit:
            with _about(number, "output"):
                raise ContextLengthExceeded(
                    f"this model's context is {spec.context_limit} positions; with its output the "
                    f"example needs {offset + taken}"
                )
        return pair

    async def answers(self, prompts: Sequence[tuple[int, ...]]) -> list[Answer]:
        """What the version says to each prompt, greedily or by beams."""
        jobs = [Job(ids, self._sampling(len(ids))) for ids in prompts]
        heard = await self._run(jobs)
        return [Answer(one.text.strip(), tuple(one.token_ids)) for one in heard]

    async def losses(self, pairs: Sequence[TokenPair]) -> list[float]:
        """Each target's negative log-probability in nats, summed over its tokens."""
        model = self.services.model
        if model.encoder_decoder is not None:
            return await self.beside(
                target_loss, [Piece((model, self.prefix, pair), len(pair)) for pair in pairs]
            )
        scoring = SamplingParams(max_tokens=0, logprobs=0)
        jobs = [Job(pair.prompt_ids + pair.target_ids, scoring, scored=True) for pair in pairs]
        heard = await self._run(jobs)
        return [_loss(one, pair) for one, pair in zip(heard, pairs, strict=True)]

    async def beside(self, work: Callable[..., Result], pieces: Sequence[Piece]) -> list[Result]:
        """`work` on each piece beside the engine, counted as this version's."""
        account = Account(self.principal, self.choice.names, self.choice.digests)
        return await beside(self.services, account, self.deadline, work, pieces)

    def max_tokens(self, num_prompt: int) -> int:
        """New tokens for a prompt: as asked, else as the version says, cut to what fits."""
        asked = self.options.max_tokens
        if asked is None:
            asked = int(self.choice.decoding.get("max_tokens", DEFAULT_MAX_TOKENS))
        return min(asked, room_for(self.services, self.choice, num_prompt))

    def _sampling(self, num_prompt: int) -> SamplingParams:
        given = self.options.model_dump(
            include=SamplingFields.model_fields.keys() & DecodingFields.model_fields.keys()
        )
        fields = SamplingFields(**{**given, **_GREEDY})
        max_tokens, generation = self.max_tokens(num_prompt), self.services.model.generation
        return sampling_params(
            fields,
            self.choice,
            generation,
            max_tokens=max_tokens,
            num_before=num_before(self.services, num_prompt),
            defaults={},
            stop=self.options.stop,
            logprobs=None,
            beam=choose_beams(fields, self.choice, generation, max_tokens=max_tokens),
        )

    async def _run(self, jobs: Sequence[Job]) -> list[_Heard]:
        """Everything that comes of the jobs, in their order; raises the error of one that fails."""
        heard: list[_Heard] = []
        for wave in self._waves(jobs):
            heard += await self._run_wave(wave)
        return heard

    def _waves(self, jobs: Sequence[Job]) -> Iterator[list[Job]]:
        """Jobs that run together: no more than the tenant's own limits take at once."""
        own = self.principal.limits
        most = own.max_rows or _MAX_WAVE_ROWS
        room = min(_MAX_WAVE_ROWS, self.services.limits.max_request_rows, most)
        longest = _MAX_WAVE_ROWS if own.max_queue is None else max(1, own.max_queue)
        wave: list[Job] = []
        for job in jobs:
            rows = sum(other.num_rows for other in wave)
            if wave and (rows + job.num_rows > room or len(wave) >= longest):
                yield wave
                wave = []
            wave.append(job)
        if wave:
            yield wave

    async def _run_wave(self, jobs: list[Job]) -> list[_Heard]:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the request's time is over")
        heard = [_Heard() for _ in jobs]
        generation = Generation(self.services, self.choice, self.principal, jobs, left, whole=True)
        try:
            await generation.start()
            async for batch in generation.events():
                for index, event in batch:
                    if isinstance(event, TextDelta):
                        heard[index].text += event.text
                        heard[index].token_ids += [token.token_id for token in event.tokens]
                    elif isinstance(event, PromptScored):
                        heard[index].logprobs += [score.logprob for score in event.scores]
        finally:
            generation.close()
        return heard


def _loss(heard: _Heard, pair: TokenPair) -> float:
    logprobs = heard.logprobs[len(pair.prompt_ids) :]
    known = [value for value in logprobs if value is not None]
    if len(known) != len(pair.target_ids):
        raise GenerationFault("not every token of the target was scored")
    return -sum(known)


@contextmanager
def _about(number: int, part: str) -> Iterator[None]:
    """Lets errors say which example they are about."""
    try:
        yield
    except InvalidRequest as error:
        where = f"examples.{number}.{part}"
        raise type(error)(f"{where}: {error.message}", param=where) from error
