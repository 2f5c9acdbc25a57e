"""`POST /tokenize` and `/detokenize`, `GET /tokenizer_info` and `/info`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import Request, Response

from app.api.dependencies import GenerationsDep, LimitsDep, ModelDep, PrincipalDep
from app.api.generation.engine_input import encode_prompts
from app.api.routing import Router
from app.api.schemas.base import json_reply
from app.api.schemas.generation import DetokenizeBody, TokenizeBody
from app.api.schemas.generation_replies import (
    GENERATION_ERRORS,
    DetokenizedReply,
    TokenizedReply,
)
from app.api.schemas.server import InfoReply, TokenizerInfoReply
from app.errors import InvalidRequest
from app.tenancy.auth.principal import Scope

router = Router("generation")


@router.route(
    "POST",
    "/tokenize",
    answers=TokenizedReply,
    scopes=[Scope.GENERATE],
    audited=False,
    counted=True,
    errors=GENERATION_ERRORS,
)
async def tokenize(
    body: TokenizeBody, generations: GenerationsDep, principal: PrincipalDep
) -> Response:
    """The tokens that a prompt becomes; with `model`, through that prefix's template.

    A body that says `add_special_tokens` is vLLM's: special tokens in its text are parsed, unless
    `parse_special` says otherwise.
    """
    prompt = body.inputs if body.inputs is not None else body.prompt
    if prompt is None:
        raise InvalidRequest("give the text as inputs (or prompt)", param="inputs")
    selection = await generations.selector.select(principal.tenant, body.model, user=body.user)
    model, pool = generations.model, generations.text_pool
    try:
        parses = body.parse_special
        [ids] = await encode_prompts(
            model,
            pool,
            principal.tenant,
            [prompt],
            template=None if body.raw else selection.template,
            add_special_tokens=body.add_special_tokens,
            parse_special=body.add_special_tokens is not None if parses is None else parses,
        )
    finally:
        selection.release()
    text = model.text

    def content() -> dict[str, Any]:
        pieces = [{"id": token, "text": text.token_text(token)} for token in ids]
        return {"count": len(ids), "tokens": list(ids), "pieces": pieces}

    return await json_reply(pool, principal.tenant, len(ids), content)


@router.route(
    "POST",
    "/detokenize",
    answers=DetokenizedReply,
    scopes=[Scope.GENERATE],
    audited=False,
    counted=True,
)
async def detokenize(
    body: DetokenizeBody, generations: GenerationsDep, principal: PrincipalDep
) -> Response:
    """The text of token ids; special tokens are left out."""
    text, tokens = generations.model.text, body.tokens
    if max(tokens) >= text.vocab_size:
        raise InvalidRequest(
            f"tokens names an id outside 0 to {text.vocab_size - 1}", param="tokens"
        )
    pool, tenant = generations.text_pool, principal.tenant
    return await json_reply(pool, tenant, len(tokens), lambda: {"prompt": text.decode(tokens)})


@router.route("GET", "/tokenizer_info", answers=TokenizerInfoReply, tag="operations")
async def tokenizer_info(model: ModelDep) -> Response:
    """The tokenizer's special tokens and what it adds to a text, in the words of vLLM."""
    text, spec = model.text, model.spec
    facts, framed = text.facts, text.encode("a")
    return TokenizerInfoReply(
        tokenizer_class=facts.kind,
        bos_token=facts.bos,
        eos_token=facts.eos or text.special_text(text.end_id),
        pad_token=facts.pad,
        unk_token=facts.unk,
        add_bos_token=framed[0] in text.special_ids,
        add_eos_token=framed[-1] in text.special_ids,
        clean_up_tokenization_spaces=facts.cleans_up,
        chat_template=facts.chat_template,
        model_max_length=spec.prompt_limit,
        vocab_size=text.vocab_size,
    ).response()


@router.route("GET", "/info", answers=InfoReply, tag="operations")
async def info(request: Request, generations: GenerationsDep, limits: LimitsDep) -> Response:
    """What this server is: base model, shapes that prefixes must have, limits, version."""
    model, engine = generations.model, generations.engine
    spec, config, shape = model.spec, engine.config, model.spec.decoder
    return InfoReply(
        model_id=spec.model_id,
        base_fingerprint=spec.fingerprint,
        family=model.family,
        layers=shape.layers,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        modules={name: asdict(module) for name, module in spec.modules.items()},
        context_limit=spec.context_limit,
        source_limit=spec.source_limit,
        model_dtype=str(model.dtype).removeprefix("torch."),
        model_device_type=model.device.type,
        system_fingerprint=generations.system_fingerprint,
        preparation={**model.notes, "decode_attention": engine.decode_attention},
        max_input_length=spec.source_limit or spec.context_limit - 1,
        max_total_tokens=spec.context_limit,
        max_prefix_length=config.max_prefix_length,
        max_concurrent_rows=config.max_rows,
        max_tenant_rows=config.max_tenant_rows,
        max_waiting_requests=config.max_waiting,
        max_request_rows=limits.max_request_rows,
        max_body_bytes=limits.max_body_bytes,
        max_stop_sequences=4,
        eos_token_ids=sorted(model.text.eos_token_ids),
        generation_defaults=model.generation.by_name,
        version=request.app.version,
    ).response()
