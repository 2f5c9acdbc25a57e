"""`POST /v1/completions`: parse, choose prefixes, submit, shape the reply."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

from fastapi import APIRouter, Request, Response

from app.api.dependencies import PrincipalDep, requires
from app.api.generation.beam_options import check_alternatives, check_results, choose_beams
from app.api.generation.generation import Generation, Job, cancel_on_disconnect, check_rows
from app.api.generation.openai_format import (
    ChunkWriter,
    Json,
    PromptReply,
    ReplyHead,
    RowReply,
    whole_reply,
)
from app.api.generation.prefix_selection import PrefixSelection, choose
from app.api.generation.prompts import encode_prompts, new_document
from app.api.generation.sampling import (
    choose_max_tokens,
    num_before,
    parse_logit_bias,
    sampling_params,
)
from app.api.generation.sse import EventStream
from app.api.schemas.generation import CompletionBody
from app.api.services import Services, ServicesDep
from app.api.side_work.off_loop import json_reply, off_loop
from app.engine.decoding.beam_search import BeamParams
from app.engine.request import RowFinished, TextDelta
from app.errors import InvalidRequest
from app.tenancy.auth.principal import Principal, Scope

router = APIRouter(dependencies=requires(Scope.GENERATE))

_DEFAULTS = {"temperature": 1.0, "top_p": 1.0}
_DEFAULT_MAX_TOKENS = 16

Echo = tuple[str, list[int]]
"""The text of a prompt, and where in it each token begins."""


@router.post("/v1/completions")
async def create_completion(
    body: CompletionBody, request: Request, services: ServicesDep, principal: PrincipalDep
) -> Response:
    """OpenAI's completions; `model` names a prefix, or several joined by `+`."""
    _check(body, services)
    prompts = _prompts(body, services)
    rows = len(prompts) * max(body.n or 1, body.best_of or 1, body.num_beams or 1)
    check_rows(services, rows, beams=body.num_beams is not None)
    services.limiter.check(principal.tenant, principal.limits, rows=rows)
    choice = await choose(services, principal.tenant, body.model, body.prefixes, user=body.user)
    try:
        jobs = await _jobs(services, principal, choice, body, prompts)
        echoes = None
        if body.echo:
            size = sum(len(job.prompt_ids) for job in jobs)
            echoes = await off_loop(services, principal.tenant, size, _spell, services, jobs)
        generation = Generation(
            services,
            choice,
            principal,
            jobs,
            body.timeout,
            whole=not body.stream,
            priority=body.priority or 0,
        )
        await generation.start()
    except BaseException:
        choice.release()
        raise
    reply = _Reply(body, generation, services, echoes)
    if body.stream:
        return EventStream(reply.parts(), lambda: generation.headers, generation.close)
    try:
        await cancel_on_disconnect(request.receive, reply.collect())
    finally:
        generation.close()
    headers = {**generation.headers, **generation.timings.headers}
    return await json_reply(services, principal.tenant, reply.size, reply.whole, headers)


def _check(body: CompletionBody, services: Services) -> None:
    """What single fields cannot say."""
    if body.suffix:
        raise InvalidRequest("suffix is not supported", param="suffix")
    n, best_of = body.n or 1, body.best_of
    if best_of is not None and best_of < n:
        raise InvalidRequest(f"best_of is {best_of}, less than n, which is {n}", param="best_of")
    if body.stream and best_of is not None and best_of > n:
        raise InvalidRequest("best_of greater than n cannot be streamed", param="best_of")
    has_encoder = services.model.spec.source_limit is not None
    if body.truncate and not has_encoder:
        raise InvalidRequest(
            "truncate cuts what an encoder reads, and this model has none: shorten the prompt",
            param="truncate",
        )
    if body.echo and body.logprobs is not None and has_encoder:
        raise InvalidRequest(
            "echo with logprobs would score the prompt, but this model's encoder reads it and "
            "gives no probabilities: leave out one of the two",
            param="echo",
        )


def _check_beams(body: CompletionBody, beam: BeamParams) -> None:
    """What beams do not do, in the words of this API."""
    n = body.n or 1
    check_results(beam, n, param="n")
    check_alternatives(body.logprobs, param="logprobs")
    if body.best_of not in (None, n):
        raise InvalidRequest(
            f"best_of is {body.best_of}, but beam search makes the n results that it returns, the "
            f"best of num_beams {beam.num_beams}: leave best_of out",
            param="best_of",
        )


def _prompts(body: CompletionBody, services: Services) -> list[str | list[int]]:
    """The prompts one by one, whichever of the forms was used.

    Without one the model begins a new document, as OpenAI's do.
    """
    prompt = body.prompt
    if prompt is None:
        return [new_document(services)]
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        return [prompt]
    return list(prompt)


async def _jobs(
    services: Services,
    principal: Principal,
    choice: PrefixSelection,
    body: CompletionBody,
    prompts: list[str | list[int]],
) -> list[Job]:
    """One job per prompt; its rows are counted before any text is encoded."""
    given, generation = body.max_tokens, services.model.generation
    most = _DEFAULT_MAX_TOKENS if given is None else given
    beam = choose_beams(body, choice, generation, max_tokens=most)
    if beam is not None:
        _check_beams(body, beam)
        check_rows(services, len(prompts) * beam.num_beams, beams=True)
    cut_to = services.model.spec.source_limit if body.truncate else None
    encoded = await encode_prompts(
        services,
        principal.tenant,
        choice,
        prompts,
        raw=body.raw,
        cut_to=cut_to,
        add_special_tokens=body.add_special_tokens,
        parse_special=bool(body.parse_special),
    )
    ranks = (body.best_of or 1) > (body.n or 1)
    logprobs = 0 if ranks and body.logprobs is None else body.logprobs
    bias = parse_logit_bias(body.logit_bias)
    rows = max(body.n or 1, body.best_of or 1)
    scored = bool(body.echo) and body.logprobs is not None
    jobs = []
    for ids in encoded:
        sampling = sampling_params(
            body,
            choice,
            generation,
            max_tokens=choose_max_tokens(services, choice, given, _DEFAULT_MAX_TOKENS, len(ids)),
            num_before=num_before(services, len(ids)),
            defaults=_DEFAULTS,
            stop=body.stop,
            logprobs=logprobs,
            logit_bias=bias,
            beam=beam,
        )
        jobs.append(Job(ids, sampling, rows, scored=scored))
    return jobs


def _spell(services: Services, jobs: Sequence[Job]) -> list[Echo]:
    """Each prompt as the model reads it, but for special tokens, and where its tokens begin."""
    return [services.model.text.spell(job.prompt_ids) for job in jobs]


class _Reply:
    """Collects one generation and shapes it, whole or in parts."""

    def __init__(
        self,
        body: CompletionBody,
        generation: Generation,
        services: Services,
        echoes: Sequence[Echo] | None,
    ) -> None:
        self._body, self._generation = body, generation
        self._head = ReplyHead(
            id=f"cmpl-{time.time_ns():x}",
            created=int(time.time()),
            model=body.model,
            system_fingerprint=services.system_fingerprint,
        )
        jobs = generation.jobs
        self._prompts = [
            PromptReply([RowReply() for _ in range(job.rows)], len(job.prompt_ids), text, starts)
            for job, (text, starts) in zip(jobs, echoes or [("", [])] * len(jobs), strict=True)
        ]
        self._echoed: set[int] = set()

    async def collect(self) -> None:
        """Wait for everything that belongs into the reply."""
        async for batch in self._generation.events():
            for index, event in batch:
                self._prompts[index].add(event)

    @property
    def size(self) -> int:
        """Tokens that the reply shows, whose texts and scores it has."""
        return sum(
            row.num_tokens + (prompt.num_prompt if self._body.echo else 0)
            for prompt in self._prompts
            for row in prompt.rows
        )

    def whole(self) -> Json:
        """The reply that is not streamed."""
        return whole_reply(self._head, self._prompts, self._body.n or 1, self._body.logprobs)

    async def parts(self) -> AsyncIterator[bytes]:
        """The stream's events, as bytes; what arrives together is sent together."""
        options = self._body.stream_options
        include_usage = options is not None and options.include_usage
        writer = ChunkWriter(self._head, self._body.logprobs, include_usage)
        timings = self._generation.timings
        open_rows = sum(job.rows for job in self._generation.jobs)
        async for batch in self._generation.events():
            part = b""
            for index, event in batch:
                self._prompts[index].add(event)
                if isinstance(event, TextDelta | RowFinished):
                    part += await self._echo(writer, index, event.index)
                if isinstance(event, TextDelta):
                    part += self._delta(writer, index, event)
                elif isinstance(event, RowFinished):
                    open_rows -= 1
                    # the last row's end and its request's end arrive together
                    totals = None if open_rows or include_usage else timings.milliseconds
                    number = self._number(index, event.index)
                    row = self._prompts[index].rows[event.index]
                    part += writer.end(number, row, totals)
            if part:
                yield part
        if include_usage:
            yield writer.usage(self._prompts, timings.milliseconds)
        yield b"data: [DONE]\n\n"

    def _number(self, prompt: int, row: int) -> int:
        """The index of a choice among those of all prompts."""
        return prompt * self._generation.jobs[0].rows + row

    async def _echo(self, writer: ChunkWriter, prompt: int, row: int) -> bytes:
        """The prompt as the first chunk of a row, if it is to be echoed and was not yet."""
        number = self._number(prompt, row)
        if not self._body.echo or number in self._echoed:
            return b""
        self._echoed.add(number)
        await asyncio.sleep(0)  # others' turn between two prompts
        reply = self._prompts[prompt]
        generation = self._generation
        size = len(reply.prompt_scores)
        return await off_loop(
            generation.services, generation.tenant, size, writer.echo, number, reply
        )

    def _delta(self, writer: ChunkWriter, prompt: int, delta: TextDelta) -> bytes:
        if not delta.text and self._body.logprobs is None:
            return b""
        base = len(self._prompts[prompt].echo_text)
        return writer.choice(self._number(prompt, delta.index), delta.text, delta.tokens, base)
