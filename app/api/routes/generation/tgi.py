"""`POST /generate`, `/generate_stream` and `/`: the API of TGI and LoRAX."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import APIRouter, Request, Response

from app.api.dependencies import PrincipalDep, requires
from app.api.generation.beam_options import check_alternatives, check_results, choose_beams
from app.api.generation.generation import Generation, Job, cancel_on_disconnect, check_rows
from app.api.generation.openai_format import PromptReply, RowReply
from app.api.generation.prefix_selection import PrefixSelection, choose
from app.api.generation.prompts import encode_prompts
from app.api.generation.sampling import choose_max_tokens, num_before, sampling_params
from app.api.generation.sse import EventStream, event
from app.api.schemas.generation import (
    CompatGenerateBody,
    GenerateBody,
    GenerateStreamBody,
    TgiParameters,
)
from app.api.services import Services, ServicesDep
from app.api.side_work.off_loop import json_reply
from app.engine.request import FinishReason, RowFinished, TextDelta, TokenScore
from app.errors import InvalidRequest
from app.tenancy.auth.principal import Principal, Scope

router = APIRouter(dependencies=requires(Scope.GENERATE))

_DEFAULT_MAX_TOKENS = 100
_SAMPLED = {"temperature": 1.0}
_NO_TOKEN = TokenScore(0, "", 0.0)
_UNSUPPORTED = (
    "grammar",
    "response_format",
    "typical_p",
    "watermark",
    "merged_adapters",
    "ignore_eos_token",
    "return_k_alternatives",
)


@router.post("/generate")
async def generate(
    body: GenerateBody, request: Request, services: ServicesDep, principal: PrincipalDep
) -> Response:
    """One text at once; `parameters.adapter_id` names the prefix."""
    reply = await _begin(body, services, principal)
    return await _whole(reply, request, reply.whole)


@router.post("/generate_stream")
async def generate_stream(
    body: GenerateStreamBody, services: ServicesDep, principal: PrincipalDep
) -> Response:
    """One text as it grows, an event per token; no `[DONE]` at the end."""
    return await _stream(body, services, principal)


@router.post("/")
async def compat_generate(
    body: CompatGenerateBody, request: Request, services: ServicesDep, principal: PrincipalDep
) -> Response:
    """`/generate`, whose reply is then a list, or with `stream` `/generate_stream`."""
    if body.stream:
        return await _stream(body, services, principal)
    reply = await _begin(body, services, principal)
    return await _whole(reply, request, lambda: [reply.whole()])


async def _stream(body: GenerateBody, services: Services, principal: Principal) -> Response:
    if (body.parameters.best_of or 1) > 1:
        raise InvalidRequest("best_of cannot be streamed", param="best_of")
    reply = await _begin(body, services, principal, streams=True)
    return EventStream(reply.parts(), lambda: reply.headers, reply.generation.close)


async def _begin(
    body: GenerateBody, services: Services, principal: Principal, *, streams: bool = False
) -> _Reply:
    """Choose the prefix and submit."""
    parameters = body.parameters
    _check(parameters, services)
    rows = max(parameters.best_of or 1, parameters.num_beams or 1)
    check_rows(services, rows, beams=parameters.num_beams is not None)
    services.limiter.check(principal.tenant, principal.limits, rows=rows)
    choice = await choose(
        services, principal.tenant, parameters.adapter_id, parameters.prefixes, user=parameters.user
    )
    try:
        job = await _job(services, principal, choice, body)
        generation = Generation(
            services,
            choice,
            principal,
            [job],
            parameters.timeout,
            whole=not streams,
            priority=parameters.priority or 0,
        )
        await generation.start()
    except BaseException:
        choice.release()
        raise
    return _Reply(body, generation)


async def _whole(reply: _Reply, request: Request, content: Callable[[], Any]) -> Response:
    generation = reply.generation
    try:
        await cancel_on_disconnect(request.receive, reply.collect())
    finally:
        generation.close()
    tenant = generation.tenant
    return await json_reply(generation.services, tenant, reply.size, content, reply.headers)


def _check(parameters: TgiParameters, services: Services) -> None:
    """Refuse what would otherwise be ignored in silence."""
    for name in _UNSUPPORTED:
        value = getattr(parameters, name)
        if name == "typical_p" and value == 1 and value is not True:
            continue  # all tokens are typical
        if value not in (None, False):
            raise InvalidRequest(f"{name} is not supported", param=name)
    spec = services.model.spec
    if parameters.truncate is not None and parameters.truncate > spec.prompt_limit:
        raise InvalidRequest(
            f"truncate is {parameters.truncate}; prompts of this model have at most "
            f"{spec.prompt_limit} tokens",
            param="truncate",
        )
    if parameters.decoder_input_details and spec.source_limit is not None:
        raise InvalidRequest(
            "decoder_input_details would score the prompt, but this model's encoder reads it and "
            "gives no probabilities: leave it out",
            param="decoder_input_details",
        )


async def _job(
    services: Services, principal: Principal, choice: PrefixSelection, body: GenerateBody
) -> Job:
    parameters = body.parameters
    samples = bool(parameters.do_sample) or parameters.temperature is not None
    given, results = parameters.max_new_tokens, parameters.best_of or 1
    beam = choose_beams(
        parameters,
        choice,
        services.model.generation,
        max_tokens=given or _DEFAULT_MAX_TOKENS,
        do_sample=bool(parameters.do_sample),
    )
    if beam is not None:
        check_results(beam, results, param="best_of")
        check_alternatives(parameters.top_n_tokens, param="top_n_tokens")
        check_rows(services, beam.num_beams, beams=True)
    [ids] = await encode_prompts(
        services,
        principal.tenant,
        choice,
        [body.inputs],
        raw=parameters.raw,
        cut_to=parameters.truncate,
        add_special_tokens=parameters.add_special_tokens,
        parse_special=bool(parameters.parse_special),
    )
    sampling = sampling_params(
        parameters,
        choice,
        services.model.generation,
        max_tokens=choose_max_tokens(services, choice, given, _DEFAULT_MAX_TOKENS, len(ids)),
        num_before=num_before(services, len(ids)),
        defaults=_SAMPLED if samples else {},
        stop=parameters.stop or None,
        logprobs=parameters.top_n_tokens or 0,
        beam=beam,
    )
    return Job(ids, sampling, results, scored=bool(parameters.decoder_input_details))


class _Reply:
    """Collects one generation and shapes it as TGI does."""

    def __init__(self, body: GenerateBody, generation: Generation) -> None:
        self.generation = generation
        self._parameters = body.parameters
        self._inputs = body.inputs if body.parameters.return_full_text else ""
        [job] = generation.jobs
        self._job = job
        self._prompt = PromptReply([RowReply() for _ in range(job.rows)], len(job.prompt_ids))
        self._ends: dict[int, RowFinished] = {}
        text = generation.services.model.text
        self._special_ids = text.special_ids | text.eos_token_ids

    @property
    def headers(self) -> dict[str, str]:
        """Headers that say what served it and, once it is done, how long it took."""
        timings = self.generation.timings
        return {**self.generation.headers, **(timings.headers if timings.total_time else {})}

    async def collect(self) -> None:
        """Wait for everything that belongs into the reply."""
        async for batch in self.generation.events():
            for _, item in batch:
                self._prompt.add(item)
                if isinstance(item, RowFinished):
                    self._ends[item.index] = item

    @property
    def size(self) -> int:
        """Tokens that the reply shows."""
        prompt = self._prompt
        return prompt.num_prompt + sum(row.num_tokens for row in prompt.rows)

    def whole(self) -> dict[str, Any]:
        """The reply that is not streamed."""
        ends = self._ends
        rows = self._prompt.rows
        best, *others = sorted(range(len(rows)), key=lambda index: -rows[index].rank)
        reply: dict[str, Any] = {"generated_text": self._inputs + rows[best].text}
        if self._parameters.details or self._parameters.decoder_input_details:
            reply["details"] = self._details(ends[best])
            if others:
                reply["details"]["best_of_sequences"] = [
                    {"generated_text": self._inputs + rows[index].text} | self._details(ends[index])
                    for index in others
                ]
        return reply

    def _details(self, end: RowFinished) -> dict[str, Any]:
        scores = self._prompt.rows[end.index].scores
        details = {
            **self._totals(end),
            "prefill": [_token(score) for score in self._prompt.prompt_scores],
            "tokens": [self._token(score) for score in scores],
        }
        if self._parameters.top_n_tokens:
            details["top_tokens"] = [self._top_tokens(score) for score in scores]
        return details

    async def parts(self) -> AsyncIterator[bytes]:
        """One event per token; the last one carries the text and the details.

        A row's last token and its end arrive in the same batch.
        """
        text, index = self._inputs, 0
        async for batch in self.generation.events():
            events: list[dict[str, Any]] = []
            for _, item in batch:
                if isinstance(item, TextDelta):
                    text += item.text
                    for score in item.tokens:
                        index += 1
                        shown = item.text if score is item.tokens[-1] else ""
                        events.append(self._stream_event(index, score, shown))
                elif isinstance(item, RowFinished):
                    # a search that bans leave nothing to has a result of no tokens
                    events = events or [self._stream_event(index, _NO_TOKEN, "")]
                    totals = self._totals(item) | {"timings": self.generation.timings.milliseconds}
                    events[-1] |= {"generated_text": text, "details": totals}
            if events:
                yield b"".join(event(content) for content in events)

    def _stream_event(self, index: int, score: TokenScore, shown: str) -> dict[str, Any]:
        """A token with the text that it completes: clients join the texts of all but specials."""
        token = self._token(score)
        if shown or not token["special"]:
            token |= {"text": shown, "special": False}
        content = {"index": index, "token": token, "generated_text": None, "details": None}
        if self._parameters.top_n_tokens:
            content["top_tokens"] = self._top_tokens(score)
        return content

    def _totals(self, end: RowFinished) -> dict[str, Any]:
        reason = "length"
        if end.reason is FinishReason.STOP:
            reason = "eos_token" if end.stop_string is None else "stop_sequence"
        return {
            "finish_reason": reason,
            "prompt_tokens": len(self._job.prompt_ids),
            "input_length": len(self._job.prompt_ids),
            "generated_tokens": end.num_tokens,
            "seed": self._job.sampling.seed,
            **({} if end.score is None else {"beam_score": end.score}),
        }

    def _token(self, score: TokenScore) -> dict[str, Any]:
        return {**_token(score), "special": score.token_id in self._special_ids}

    def _top_tokens(self, score: TokenScore) -> list[dict[str, Any]]:
        """The most probable tokens in the place of this one, best first."""
        return [self._token(TokenScore(*alternative)) for alternative in score.top]


def _token(score: TokenScore) -> dict[str, Any]:
    return {"id": score.token_id, "text": score.text, "logprob": score.logprob}
