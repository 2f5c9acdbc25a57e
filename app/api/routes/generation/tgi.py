"""`POST /generate`, `/generate_stream` and `/`: the API of TGI and LoRAX."""

from __future__ import annotations

from typing import Any

from fastapi import Request, Response

from app.api.dependencies import GenerationsDep, PrincipalDep
from app.api.errors import ErrorShape
from app.api.generation.engine_input import GenerationSpec, check_alternatives, check_results
from app.api.generation.generation import GenerationService
from app.api.generation.sse import EventStream
from app.api.generation.tgi_format import GenerateReply
from app.api.routing import EVENTS, JSON, Answer, Events, RouteFacts, Router
from app.api.schemas.base import json_reply
from app.api.schemas.generation import (
    CompatGenerateBody,
    GenerateBody,
    GenerateStreamBody,
    TgiParameters,
)
from app.api.schemas.generation_replies import (
    GENERATION_ERRORS,
    SERVED_HEADERS,
    GeneratedListReply,
    GeneratedReply,
    StreamedToken,
)
from app.engine.decoding.beam_search import BeamParams
from app.errors import InvalidRequest
from app.prefix.spec import BaseModelSpec
from app.tenancy.auth.principal import Principal, Scope

router = Router("generation")

_EVENTS = Events(StreamedToken)
_FACTS = RouteFacts(
    scopes=[Scope.GENERATE], audited=False, error_shape=ErrorShape.TGI, errors=GENERATION_ERRORS
)

_DEFAULT_MAX_TOKENS = 100
_SAMPLED = {"temperature": 1.0}
_UNSUPPORTED = (
    "grammar",
    "response_format",
    "typical_p",
    "watermark",
    "merged_adapters",
    "ignore_eos_token",
    "return_k_alternatives",
)


@router.route("POST", "/generate", answers=Answer({JSON: GeneratedReply}, SERVED_HEADERS), **_FACTS)
async def generate(
    body: GenerateBody, request: Request, generations: GenerationsDep, principal: PrincipalDep
) -> Response:
    """One text at once; `parameters.adapter_id` names the prefix."""
    return await _whole(body, request, generations, principal)


@router.route(
    "POST", "/generate_stream", answers=Answer({EVENTS: _EVENTS}, SERVED_HEADERS), **_FACTS
)
async def generate_stream(
    body: GenerateStreamBody, generations: GenerationsDep, principal: PrincipalDep
) -> Response:
    """One text as it grows, an event per token; no `[DONE]` at the end."""
    return await _stream(body, generations, principal)


@router.route(
    "POST",
    "/",
    answers=Answer({JSON: GeneratedListReply, EVENTS: _EVENTS}, SERVED_HEADERS),
    **_FACTS,
)
async def compat_generate(
    body: CompatGenerateBody, request: Request, generations: GenerationsDep, principal: PrincipalDep
) -> Response:
    """`/generate`, whose reply is then a list, or with `stream` `/generate_stream`."""
    if body.stream:
        return await _stream(body, generations, principal)
    return await _whole(body, request, generations, principal, as_list=True)


async def _stream(
    body: GenerateBody, generations: GenerationService, principal: Principal
) -> Response:
    if (body.parameters.best_of or 1) > 1:
        raise InvalidRequest("best_of cannot be streamed", param="best_of")
    spec = _spec(body, generations.model.spec, streams=True)
    generation = await generations.run(spec, principal)
    reply = GenerateReply(body, generation, generations.model.text)
    return EventStream(
        reply.parts(),
        lambda: {**generation.headers, **generation.timings.headers},
        generation.close,
    )


async def _whole(
    body: GenerateBody,
    request: Request,
    generations: GenerationService,
    principal: Principal,
    *,
    as_list: bool = False,
) -> Response:
    spec = _spec(body, generations.model.spec, streams=False)
    generation = await generations.run(spec, principal)
    reply = GenerateReply(body, generation, generations.model.text)
    await generation.finish(request.receive, [reply.prompt])

    def content() -> Any:
        return [reply.whole()] if as_list else reply.whole()

    headers = {**generation.headers, **generation.timings.headers}
    return await json_reply(generations.text_pool, principal.tenant, reply.size, content, headers)


def _spec(body: GenerateBody, model: BaseModelSpec, *, streams: bool) -> GenerationSpec:
    """What the body asks for; InvalidRequest for what single fields cannot say."""
    parameters = body.parameters
    _check(parameters, model)
    samples = bool(parameters.do_sample) or parameters.temperature is not None
    results = parameters.best_of or 1

    def check_beams(beam: BeamParams) -> None:
        check_results(beam, results, param="best_of")
        check_alternatives(parameters.top_n_tokens, param="top_n_tokens")

    return GenerationSpec(
        fields=parameters,
        model=parameters.adapter_id,
        prompts=[body.inputs],
        max_tokens=parameters.max_new_tokens,
        default_max_tokens=_DEFAULT_MAX_TOKENS,
        num_results=results,
        defaults=_SAMPLED if samples else {},
        do_sample=bool(parameters.do_sample),
        stop=parameters.stop or None,
        logprobs=parameters.top_n_tokens or 0,
        scores_prompt=bool(parameters.decoder_input_details),
        cut_to=parameters.truncate,
        streams=streams,
        check_beams=check_beams,
    )


def _check(parameters: TgiParameters, model: BaseModelSpec) -> None:
    """Refuse what would otherwise be ignored in silence."""
    for name in _UNSUPPORTED:
        value = getattr(parameters, name)
        if name == "typical_p" and value == 1 and value is not True:
            continue  # all tokens are typical
        if value not in (None, False):
            raise InvalidRequest(f"{name} is not supported", param=name)
    if parameters.truncate is not None and parameters.truncate > model.prompt_limit:
        raise InvalidRequest(
            f"truncate is {parameters.truncate}; prompts of this model have at most "
            f"{model.prompt_limit} tokens",
            param="truncate",
        )
    if parameters.decoder_input_details and model.source_limit is not None:
        raise InvalidRequest(
            "decoder_input_details would score the prompt, but this model's encoder reads it and "
            "gives no probabilities: leave it out",
            param="decoder_input_details",
        )
