"""Schemas of errors, of what the model generates, and of what the server says of itself."""

from __future__ import annotations

from app.api.openapi.shapes import (
    ANYTHING,
    COUNT,
    DIGEST,
    MAYBE,
    NUMBER,
    SCORE,
    SWITCH,
    TEXT,
    TIME,
    Schema,
    deleted,
    event_of,
    just,
    list_of,
    map_of,
    object_of,
    or_null,
    ref,
)

_ERRORS: dict[str, Schema] = {
    "Error": object_of(
        {
            "error": object_of(
                {
                    "message": TEXT,
                    "type": just("invalid_request_error", "rate_limit_error", "server_error"),
                    "param": MAYBE,
                    "code": TEXT,
                }
            )
        }
    ),
    "TgiError": object_of(
        {"error": TEXT, "error_type": just("validation", "overloaded", "generation")}
    ),
}

_HEAD: dict[str, Schema] = {
    "id": TEXT,
    "object": just("text_completion"),
    "created": TIME,
    "model": TEXT,
    "system_fingerprint": TEXT,
}
_CHOICE: dict[str, Schema] = {
    "text": TEXT,
    "index": COUNT,
    "logprobs": or_null(ref("CompletionLogprobs")),
}
_TOKENS_USED = object_of(
    {"prompt_tokens": COUNT, "completion_tokens": COUNT, "total_tokens": COUNT}
)
_TIMINGS = object_of({"queue_time": NUMBER, "time_to_first_token": NUMBER, "total_time": NUMBER})

_COMPLETIONS: dict[str, Schema] = {
    "Completion": object_of(
        {**_HEAD, "choices": list_of(ref("CompletionChoice")), "usage": _TOKENS_USED}
    ),
    "CompletionChoice": object_of(
        {**_CHOICE, "finish_reason": just("stop", "length")}, beam_score=NUMBER
    ),
    "CompletionChunk": object_of(
        _HEAD
        | {
            "choices": list_of(
                object_of(
                    {**_CHOICE, "finish_reason": just("stop", "length", None)}, beam_score=NUMBER
                )
            )
        },
        usage=or_null(_TOKENS_USED),
        timings=_TIMINGS,
    ),
    "CompletionEvent": event_of({"anyOf": [ref("CompletionChunk"), ref("Error")]}, end="[DONE]"),
    "CompletionLogprobs": object_of(
        {
            "tokens": list_of(TEXT),
            "token_logprobs": list_of(SCORE),
            "top_logprobs": or_null(list_of(or_null(map_of(NUMBER)))),
            "text_offset": list_of(COUNT),
        }
    ),
}

_TOKEN: dict[str, Schema] = {"id": COUNT, "text": TEXT, "logprob": SCORE}
_TOTALS: dict[str, Schema] = {
    "finish_reason": just("length", "eos_token", "stop_sequence"),
    "prompt_tokens": COUNT,
    "input_length": COUNT,
    "generated_tokens": COUNT,
    "seed": or_null({"type": "integer"}),
}
_DETAILS: dict[str, Schema] = {
    **_TOTALS,
    "prefill": list_of(object_of(_TOKEN)),
    "tokens": list_of(ref("GeneratedToken")),
}
_TOP = list_of(list_of(ref("GeneratedToken")))

_GENERATE: dict[str, Schema] = {
    "Generated": object_of({"generated_text": TEXT}, details=ref("GenerationDetails")),
    "GeneratedList": list_of(ref("Generated")),
    "GeneratedToken": object_of({**_TOKEN, "special": SWITCH}),
    "GenerationDetails": object_of(
        _DETAILS,
        beam_score=NUMBER,
        top_tokens=_TOP,
        best_of_sequences=list_of(
            object_of({"generated_text": TEXT, **_DETAILS}, beam_score=NUMBER, top_tokens=_TOP)
        ),
    ),
    "StreamedToken": object_of(
        {
            "index": COUNT,
            "token": ref("GeneratedToken"),
            "generated_text": MAYBE,
            "details": or_null(object_of({**_TOTALS, "timings": _TIMINGS}, beam_score=NUMBER)),
        },
        top_tokens=list_of(ref("GeneratedToken")),
    ),
    "GenerationEvent": event_of({"anyOf": [ref("StreamedToken"), ref("TgiError")]}),
    "Tokenized": object_of(
        {
            "count": COUNT,
            "tokens": list_of(COUNT),
            "pieces": list_of(object_of({"id": COUNT, "text": TEXT})),
        }
    ),
    "TokenizerInfo": object_of(
        {
            "tokenizer_class": TEXT,
            "bos_token": MAYBE,
            "eos_token": MAYBE,
            "pad_token": MAYBE,
            "unk_token": MAYBE,
            "add_bos_token": SWITCH,
            "add_eos_token": SWITCH,
            "clean_up_tokenization_spaces": SWITCH,
            "chat_template": MAYBE,
            "model_max_length": COUNT,
            "vocab_size": COUNT,
        }
    ),
    "Detokenized": object_of({"prompt": TEXT}),
}

_MODELS: dict[str, Schema] = {
    "Model": object_of(
        {
            "id": TEXT,
            "object": just("model"),
            "created": TIME,
            "owned_by": TEXT,
            "root": TEXT,
            "parent": MAYBE,
            "max_model_len": COUNT,
        }
    ),
    "ModelList": object_of({"object": just("list"), "data": list_of(ref("Model"))}),
    "ModelDeleted": deleted("model", "id"),
    "Info": object_of(
        {
            "model_id": TEXT,
            "base_fingerprint": DIGEST,
            "family": TEXT,
            "layers": COUNT,
            "kv_heads": COUNT,
            "head_dim": COUNT,
            "modules": map_of(object_of({"layers": COUNT, "kv_heads": COUNT, "head_dim": COUNT})),
            "context_limit": COUNT,
            "source_limit": or_null(COUNT),
            "model_dtype": TEXT,
            "model_device_type": TEXT,
            "system_fingerprint": TEXT,
            "preparation": ANYTHING,
            "max_input_length": COUNT,
            "max_total_tokens": COUNT,
            "max_prefix_length": COUNT,
            "max_concurrent_rows": COUNT,
            "max_tenant_rows": COUNT,
            "max_waiting_requests": COUNT,
            "max_request_rows": COUNT,
            "max_body_bytes": COUNT,
            "max_stop_sequences": COUNT,
            "eos_token_ids": list_of(COUNT),
            "generation_defaults": ANYTHING,
            "version": TEXT,
        }
    ),
    "Index": object_of(
        {"name": just("polyprefix"), "version": TEXT, "model": TEXT, "links": map_of(TEXT)}
    ),
    "ServerVersion": object_of({"version": TEXT, "model": TEXT}),
    "Ping": object_of({"status": just("ok")}),
    "Health": object_of(
        {
            "status": just("ok", "unavailable"),
            "draining": SWITCH,
            "running": COUNT,
            "waiting": COUNT,
            "steps": COUNT,
        }
    ),
}

SERVING: dict[str, Schema] = {**_ERRORS, **_COMPLETIONS, **_GENERATE, **_MODELS}
"""By name."""
