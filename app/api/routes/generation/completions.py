"""`POST /v1/completions`: OpenAI's legacy completions, with prefixes as models."""

from __future__ import annotations

from fastapi import Request, Response

from app.api.dependencies import GenerationsDep, PrincipalDep
from app.api.errors import ErrorShape
from app.api.generation.engine_input import (
    GenerationSpec,
    check_alternatives,
    check_results,
    new_document,
)
from app.api.generation.openai_format import CompletionReply
from app.api.generation.sse import EventStream
from app.api.routing import EVENTS, JSON, Answer, Events, Router
from app.api.schemas.base import json_reply
from app.api.schemas.generation import CompletionBody
from app.api.schemas.generation_replies import (
    GENERATION_ERRORS,
    SERVED_HEADERS,
    Completion,
    CompletionChunk,
)
from app.engine.decoding.beam_search import BeamParams
from app.errors import InvalidRequest
from app.model.frozen import FrozenModel
from app.tenancy.auth.principal import Scope

router = Router("generation")

_DEFAULTS = {"temperature": 1.0, "top_p": 1.0}
_DEFAULT_MAX_TOKENS = 16


@router.route(
    "POST",
    "/v1/completions",
    answers=Answer(
        {JSON: Completion, EVENTS: Events(CompletionChunk, end="[DONE]")}, SERVED_HEADERS
    ),
    scopes=[Scope.GENERATE],
    audited=False,
    error_shape=ErrorShape.OPENAI,
    errors=GENERATION_ERRORS,
)
async def create_completion(
    body: CompletionBody, request: Request, generations: GenerationsDep, principal: PrincipalDep
) -> Response:
    """OpenAI's completions; `model` names a prefix, or several joined by `+`."""
    generation = await generations.run(_spec(body, generations.model), principal)
    reply = CompletionReply(body, generation, generations)
    if body.stream:
        return EventStream(reply.parts(), lambda: generation.headers, generation.close)
    await generation.finish(request.receive, reply.prompts)
    if body.echo:
        await reply.spell()
    headers = {**generation.headers, **generation.timings.headers}
    return await json_reply(
        generations.text_pool, principal.tenant, reply.size, reply.whole, headers
    )


def _spec(body: CompletionBody, model: FrozenModel) -> GenerationSpec:
    """What the body asks for; InvalidRequest for what single fields cannot say."""
    n, best_of, logprobs = body.n or 1, body.best_of or 1, body.logprobs
    has_encoder = model.spec.source_limit is not None
    _check(body, has_encoder=has_encoder)
    if best_of > n and logprobs is None:
        logprobs = 0  # results are ranked by their probabilities
    prompt, prompts = body.prompt, list[str | list[int]]()
    if prompt is None:
        prompts = [new_document(model)]
    elif isinstance(prompt, str) or isinstance(prompt[0], int):
        prompts = [prompt]
    else:
        prompts = list(prompt)
    return GenerationSpec(
        fields=body,
        model=body.model,
        prompts=prompts,
        max_tokens=body.max_tokens,
        default_max_tokens=_DEFAULT_MAX_TOKENS,
        num_results=max(n, best_of),
        defaults=_DEFAULTS,
        stop=body.stop,
        logprobs=logprobs,
        logit_bias=body.logit_bias,
        scores_prompt=bool(body.echo) and body.logprobs is not None,
        cut_to=model.spec.source_limit if body.truncate else None,
        streams=bool(body.stream),
        check_beams=lambda beam: _check_beams(body, beam),
    )


def _check(body: CompletionBody, *, has_encoder: bool) -> None:
    if body.suffix:
        raise InvalidRequest("suffix is not supported", param="suffix")
    n, best_of = body.n or 1, body.best_of
    if best_of is not None and best_of < n:
        raise InvalidRequest(f"best_of is {best_of}, less than n, which is {n}", param="best_of")
    if body.stream and best_of is not None and best_of > n:
        raise InvalidRequest("best_of greater than n cannot be streamed", param="best_of")
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
