"""Versions on examples, for a tenant: through the engine as requests, else in the side queue."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from app.api.generation.engine_input import check_text, encode_prompts, off_loop, room_for
from app.api.generation.generation import GenerationService
from app.api.generation.prefix_selection import PrefixSelection
from app.api.schemas.evaluations import DecodingFields, ExampleBody
from app.api.side_work import ConcurrencyCap, MeteredQueue
from app.engine.offline import CompletedRequest
from app.engine.request import GenerationRequest
from app.errors import ContextLengthExceeded, DeadlineExceeded, InvalidRequest
from app.evaluation.evaluator import Evaluation, Evaluator
from app.evaluation.gate_score import gate_score
from app.evaluation.text_pairs import TokenPair, written_target
from app.prefix.prefix import Prefix
from app.registry.quality_gates import QualityGate
from app.tenancy.auth.principal import Principal

Result = TypeVar("Result")

_MAX_WAVE_ROWS = 32
"""Rows that one evaluation has in the engine: it takes longer, and its tenant can do more."""
_NO_OPTIONS = {"timeout", "raw", "truncate"}
"""Fields of `DecodingFields` that say nothing about how an answer is searched for."""


@dataclass(frozen=True)
class VersionEvaluation:
    """One version under one request of a tenant; its `evaluator` computes by means of it.

    `selection` holds exactly one prefix, which whoever selected it releases. `deadline` is on the
    clock of `time.monotonic`.
    """

    generations: GenerationService
    queue: MeteredQueue
    principal: Principal
    selection: PrefixSelection
    options: DecodingFields
    deadline: float

    @property
    def prefix(self) -> Prefix:
        """The version's tensors, on the device."""
        return self.selection.prefixes[0]

    @property
    def evaluator(self) -> Evaluator:
        """Scores the version, which answers as the request's options say."""
        chosen = DecodingFields.model_fields.keys() - _NO_OPTIONS
        options = self.options.model_dump(include=chosen, exclude_none=True)
        return Evaluator(self.generations.model, self.prefix, self, options)

    async def evaluate(
        self, examples: Sequence[ExampleBody], metrics: Collection[str]
    ) -> Evaluation:
        """Scores by `metrics`, of which only what they need is computed."""
        prompts = await self.prompts([example.input for example in examples])
        references = [example.references for example in examples]
        size = sum(len(text) for accepted in references for text in accepted)
        evaluator, pairs = self.evaluator, list[list[TokenPair]]()
        if "rouge_l" in metrics:
            await self.off_loop(size, evaluator.check_rouge_work, prompts, references)
        if "loss" in metrics:
            pairs = await self.off_loop(size, self._pairs, prompts, references)
        return await evaluator.evaluate(prompts, references, metrics, pairs)

    async def gate_score(self, gate: QualityGate) -> float:
        """The version's score by a gate."""
        examples = [ExampleBody(input=one["input"], output=one["output"]) for one in gate.examples]
        return await gate_score(gate.metric, partial(self.evaluate, examples))

    async def prompts(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Token ids of the examples' inputs, exactly as a completion would read them.

        InvalidRequest names the example.
        """
        model = self.generations.model
        if self.options.truncate and model.spec.source_limit is None:
            raise InvalidRequest(
                "truncate cuts what an encoder reads, and this model has none: shorten the inputs",
                param="truncate",
            )
        cut_to = model.spec.source_limit if self.options.truncate else None
        if cut_to is None:
            for number, text in enumerate(texts):
                with _about(number, "input"):
                    check_text(model.spec, text)
        found = await encode_prompts(
            model,
            self.generations.text_pool,
            self.principal.tenant,
            texts,
            template=None if self.options.raw else self.selection.template,
            cut_to=cut_to,
        )
        for number, ids in enumerate(found):
            with _about(number, "input"):
                if not ids:
                    raise InvalidRequest("the prompt has no tokens")
                room_for(model.spec, self.selection, len(ids))
        return found

    def pair(self, number: int, prompt_ids: tuple[int, ...], target: str) -> TokenPair:
        """A prompt with a target, exactly as prefixes are trained on them."""
        model = self.generations.model
        with _about(number, "output"):
            check_text(model.spec, target)
            written = written_target(model, target)
        return self.fitting(number, TokenPair(prompt_ids, written))

    def fitting(self, number: int, pair: TokenPair) -> TokenPair:
        """The pair, if prefix, prompt and target fit the context; ContextLengthExceeded."""
        spec = self.generations.model.spec
        offset = self.prefix.metadata.position_offset
        taken = len(pair) if spec.source_limit is None else len(pair.target_ids)
        if offset + taken > spec.context_limit:
            with _about(number, "output"):
                raise ContextLengthExceeded(
                    f"this model's context is {spec.context_limit} positions; with its output the "
                    f"example needs {offset + taken}"
                )
        return pair

    async def off_loop(self, size: int, work: Callable[..., Result], *arguments: Any) -> Result:
        """`work(*arguments)` on texts of `size` characters, off the event loop unless short."""
        pool = self.generations.text_pool
        return await off_loop(pool, self.principal.tenant, size, work, *arguments)

    async def compute(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """`work(*arguments)` in the side queue, at no cost."""
        return await self.queue.queue.run(self.principal.tenant, self.deadline, work, *arguments)

    async def compute_each(
        self, work: Callable[..., Result], pieces: Sequence[tuple[Any, ...]], tokens: Sequence[int]
    ) -> list[Result]:
        """`work` on each piece in the side queue, counted as this version's."""
        return await self.queue.run(
            self.principal, self.deadline, work, pieces, tokens, self.selection
        )

    async def complete(self, requests: Sequence[GenerationRequest]) -> list[CompletedRequest]:
        """Run the requests as this tenant's, in waves."""
        done: list[CompletedRequest] = []
        for wave in self.waves(requests):
            done += await self._complete_wave(wave)
        return done

    def waves(self, requests: Sequence[GenerationRequest]) -> Iterator[list[GenerationRequest]]:
        """Requests that run together: no more than the tenant's own limits take at once."""
        own = self.principal.limits
        most = own.max_rows or _MAX_WAVE_ROWS
        room = min(_MAX_WAVE_ROWS, self.generations.max_rows, most)
        longest = _MAX_WAVE_ROWS if own.max_queue is None else max(1, own.max_queue)
        wave: list[GenerationRequest] = []
        for request in requests:
            rows = sum(other.num_rows for other in wave)
            if wave and (rows + request.num_rows > room or len(wave) >= longest):
                yield wave
                wave = []
            wave.append(replace(request, id=secrets.token_hex(12)))
        if wave:
            yield wave

    async def _complete_wave(self, requests: list[GenerationRequest]) -> list[CompletedRequest]:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the request's time is over")
        generation = await self.generations.submit(
            requests, self.principal, self.selection.borrowed(), timeout=left
        )
        done = [CompletedRequest.of(request) for request in requests]
        try:
            async for batch in generation.events():
                for index, event in batch:
                    done[index].add(event)
        finally:
            generation.close()
        return done

    def _pairs(
        self, prompts: Sequence[tuple[int, ...]], references: Sequence[Sequence[str]]
    ) -> list[list[TokenPair]]:
        """For each example a pair per reference, as in training."""
        return [
            [self.pair(at, prompts[at], reference) for reference in accepted]
            for at, accepted in enumerate(references)
        ]


@dataclass(frozen=True)
class EvaluationService:
    """Evaluates versions for tenants; `cap` bounds how many evaluations each has open."""

    generations: GenerationService
    queue: MeteredQueue
    cap: ConcurrencyCap = field(default_factory=lambda: ConcurrencyCap("evaluations"))

    def begin(
        self, principal: Principal, selection: PrefixSelection, options: DecodingFields
    ) -> VersionEvaluation:
        """An evaluation of the one version in `selection`, with the request's time before it."""
        longest = self.generations.timeout
        deadline = time.monotonic() + min(options.timeout or longest, longest)
        return VersionEvaluation(
            self.generations, self.queue, principal, selection, options, deadline
        )

    @asynccontextmanager
    async def version(
        self, principal: Principal, name: str, selector: str, options: DecodingFields
    ) -> AsyncIterator[VersionEvaluation]:
        """An evaluation of the tenant's own version `selector` of prefix `name`.

        Raises what selecting a prefix raises.
        """
        # as a list, so that it is never taken for the base model
        selection = await self.generations.selector.select(
            principal.tenant, None, [f"{name}@{selector}"]
        )
        try:
            yield self.begin(principal, selection, options)
        finally:
            selection.release()

    async def gate_score(
        self, principal: Principal, name: str, digest: str, gate: QualityGate
    ) -> float:
        """As of `VersionEvaluation`, of the version `digest` with its own decoding defaults."""
        async with self.version(principal, name, digest, DecodingFields()) as evaluation:
            return await evaluation.gate_score(gate)


@contextmanager
def _about(number: int, part: str) -> Iterator[None]:
    """Lets errors say which example they are about."""
    try:
        yield
    except InvalidRequest as error:
        where = f"examples.{number}.{part}"
        raise type(error)(f"{where}: {error.message}", param=where) from error
