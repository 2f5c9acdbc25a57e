"""What each route answers: its good replies, and the errors that not every such route has.

Routes go by the names of their functions. Knows nothing about how a description is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

JSON = "application/json"
EVENTS = "text/event-stream"
FILE = "application/octet-stream"
TEXT = "text/plain"

_SERVED = (
    "x-prefix-version",
    "x-prefix-tier",
    "x-queue-time",
    "x-time-to-first-token",
    "x-total-time",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-tokens",
)
_GENERATING = frozenset({404, 409, 504})
_JUDGING = frozenset({409, 504})


@dataclass(frozen=True)
class Reply:
    """One good reply: `bodies` maps media types to names of schemas, None for what has none."""

    bodies: Mapping[str, str | None]
    headers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Replies:
    """Of one route: good replies by status, and errors by status beyond those that all have."""

    tag: str
    good: Mapping[int, Reply]
    errors: frozenset[int] = frozenset()


def _one(tag: str, schema: str, *errors: int, headers: tuple[str, ...] = ()) -> Replies:
    return Replies(tag, {200: Reply({JSON: schema}, headers)}, frozenset(errors))


def _made(tag: str, schema: str, *errors: int) -> Replies:
    made = Reply({JSON: schema}, ("location",))
    return Replies(tag, {201: made}, frozenset(errors))


def _version(*errors: int) -> Replies:
    """201 for a new one, 200 for one that is there."""
    made = Reply({JSON: "Version"}, ("location",))
    return Replies("prefixes", {200: made, 201: made}, frozenset(errors))


def _health() -> Replies:
    state = Reply({JSON: "Health"})
    return Replies("operations", {200: state, 503: state})


def _stream(bodies: Mapping[str, str | None]) -> Replies:
    return Replies("generation", {200: Reply(bodies, _SERVED)}, _GENERATING)


REPLIES: dict[str, Replies] = {
    "create_completion": _stream({JSON: "Completion", EVENTS: "CompletionEvent"}),
    "generate": _stream({JSON: "Generated"}),
    "generate_stream": _stream({EVENTS: "GenerationEvent"}),
    "compat_generate": _stream({JSON: "GeneratedList", EVENTS: "GenerationEvent"}),
    "tokenize": _one("generation", "Tokenized", *_GENERATING),
    "detokenize": _one("generation", "Detokenized"),
    "list_models": _one("models", "ModelList"),
    "get_model": _one("models", "Model", 409),
    "delete_model": _one("models", "ModelDeleted", 409),
    "info": _one("operations", "Info"),
    "tokenizer_info": _one("operations", "TokenizerInfo"),
    "index": _one("operations", "Index"),
    "server_version": _one("operations", "ServerVersion"),
    "ping": _one("operations", "Ping"),
    "live": _health(),
    "ready": _health(),
    "health": _health(),
    "metrics": Replies("operations", {200: Reply({TEXT: None})}),
    "list_prefixes": _one("prefixes", "PrefixPage"),
    "get_prefix": _one("prefixes", "Prefix"),
    "delete_prefix": _one("prefixes", "PrefixDeleted"),
    "upload_version": _version(409, 422, 504),
    "make_from_text": _version(409, 504),
    "list_versions": _one("prefixes", "VersionPage"),
    "get_version": _one("prefixes", "Version"),
    "delete_version": _one("prefixes", "VersionDeleted", 409),
    "download_version": Replies(
        "prefixes",
        {200: Reply({FILE: None}, ("etag", "content-disposition", "accept-ranges"))},
    ),
    "pin_version": _one("prefixes", "Version"),
    "unpin_version": _one("prefixes", "Version"),
    "get_alias": _one("aliases", "Alias", headers=("etag",)),
    "set_alias": _one("aliases", "Alias", 409, 412, 504, headers=("etag",)),
    "rollback_alias": _one("aliases", "Alias", 409, 412, headers=("etag",)),
    "alias_history": _one("aliases", "AliasHistory"),
    "get_gate": _one("aliases", "AliasGate"),
    "set_gate": _one("aliases", "AliasGate", 409),
    "remove_gate": _one("aliases", "AliasGateDeleted"),
    "get_publication": _one("publications", "Publication"),
    "set_publication": _one("publications", "Publication"),
    "delete_publication": _one("publications", "PublicationDeleted"),
    "list_published": _one("publications", "PublishedPage", 404),
    "evaluate_version": _one("judging", "Evaluation", *_JUDGING, headers=_SERVED[:2]),
    "compare_versions": _one("judging", "Comparison", *_JUDGING),
    "create_tenant": _made("tenants", "Tenant", 409),
    "list_tenants": _one("tenants", "TenantPage"),
    "get_tenant": _one("tenants", "Tenant"),
    "change_tenant": _one("tenants", "Tenant"),
    "delete_tenant": _one("tenants", "TenantDeleted", 409),
    "create_key": _made("tenants", "NewKey", 409),
    "list_keys": _one("tenants", "KeyPage"),
    "get_key": _one("tenants", "Key"),
    "revoke_key": _one("tenants", "Key"),
    "list_audit": _one("operations", "AuditPage"),
    "get_usage": _one("usage", "UsagePage", 403),
}
