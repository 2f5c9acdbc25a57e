"""What the server says of itself, its models and its tokenizer."""

from __future__ import annotations

from typing import Any, Literal

from app.api.schemas.base import Count, Digest, Reply, Seconds


class ModelReply(Reply):
    """A model as OpenAI describes it: the base model, or a prefix."""

    id: str
    object: Literal["model"] = "model"
    created: Seconds
    owned_by: str
    root: str
    parent: str | None
    max_model_len: Count


class ModelListReply(Reply):
    """The base model, the caller's prefixes, and those published to the caller."""

    object: Literal["list"] = "list"
    data: list[ModelReply]


class ModelDeleted(Reply):
    """A prefix that is gone, named as a model."""

    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True


class ModuleReply(Reply):
    """The shape of keys and values in one attention module."""

    layers: Count
    kv_heads: Count
    head_dim: Count


class InfoReply(Reply):
    """Base model, the shapes that prefixes must have, limits and version."""

    model_id: str
    base_fingerprint: Digest
    family: str
    layers: Count
    kv_heads: Count
    head_dim: Count
    modules: dict[str, ModuleReply]
    context_limit: Count
    source_limit: Count | None
    model_dtype: str
    model_device_type: str
    system_fingerprint: str
    preparation: dict[str, Any]
    max_input_length: Count
    max_total_tokens: Count
    max_prefix_length: Count
    max_concurrent_rows: Count
    max_tenant_rows: Count
    max_waiting_requests: Count
    max_request_rows: Count
    max_body_bytes: Count
    max_stop_sequences: Count
    eos_token_ids: list[Count]
    generation_defaults: dict[str, Any]
    version: str


class TokenizerInfoReply(Reply):
    """The tokenizer's special tokens and what it adds to a text, in vLLM's words."""

    tokenizer_class: str
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    add_bos_token: bool
    add_eos_token: bool
    clean_up_tokenization_spaces: bool
    chat_template: str | None
    model_max_length: Count
    vocab_size: Count


class IndexReply(Reply):
    """The server's name and where its parts are."""

    name: Literal["polyprefix"] = "polyprefix"
    version: str
    model: str
    links: dict[str, str]


class ServerVersionReply(Reply):
    """The server's version and its base model."""

    version: str
    model: str


class PingReply(Reply):
    """The web server answers."""

    status: Literal["ok"] = "ok"


class HealthReply(Reply):
    """Whether the server serves, and what the engine has to do."""

    status: Literal["ok", "unavailable"]
    draining: bool
    running: Count
    waiting: Count
    steps: Count
