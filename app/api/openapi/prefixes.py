"""Schemas of prefixes, versions and aliases, and of how versions are judged."""

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
    WEIGHTS,
    Schema,
    deleted,
    just,
    list_of,
    map_of,
    object_of,
    or_null,
    page_of,
    ref,
)

_PREFIXES: dict[str, Schema] = {
    "Version": object_of(
        {
            "object": just("prefix.version"),
            "name": TEXT,
            "digest": DIGEST,
            "length": COUNT,
            "lengths": map_of(COUNT),
            "position_offset": COUNT,
            "dtype": TEXT,
            "nbytes": COUNT,
            "base_model": MAYBE,
            "base_fingerprint": or_null(DIGEST),
            "verified": SWITCH,
            "input_template": MAYBE,
            "decoding": ANYTHING,
            "provenance": ANYTHING,
            "created_at": TIME,
            "pinned": SWITCH,
        },
        warnings=list_of(TEXT),
    ),
    "VersionPage": page_of("Version"),
    "VersionDeleted": deleted("prefix.version", "name", "digest"),
    "Prefix": object_of(
        {
            "object": just("prefix"),
            "name": TEXT,
            "versions": COUNT,
            "aliases": map_of(DIGEST),
            "splits": map_of(WEIGHTS),
            "created_at": TIME,
        }
    ),
    "PrefixPage": page_of("Prefix"),
    "PrefixDeleted": deleted("prefix", "name"),
    "Publication": object_of(
        {
            "object": just("prefix.publication"),
            "name": TEXT,
            "tenants": list_of(TEXT),
            "everyone": SWITCH,
        }
    ),
    "PublicationDeleted": deleted("prefix.publication", "name"),
    "Published": object_of(
        {
            "object": just("prefix.published"),
            "id": TEXT,
            "tenant": TEXT,
            "name": TEXT,
            "created_at": TIME,
        }
    ),
    "PublishedPage": page_of("Published"),
}

_EXAMPLE = object_of({"input": TEXT, "output": list_of(TEXT)})
_SAID = object_of({"output": TEXT, "loss": SCORE})

_JUDGED: dict[str, Schema] = {
    "Alias": object_of(
        {
            "object": just("prefix.alias"),
            "name": TEXT,
            "alias": TEXT,
            "version": DIGEST,
            "split": or_null(WEIGHTS),
            "updated_at": TIME,
        }
    ),
    "AliasHistory": object_of({"object": just("list"), "data": list_of(ref("AliasChange"))}),
    "AliasChange": object_of(
        {
            "object": just("prefix.alias.change"),
            "version": DIGEST,
            "split": or_null(WEIGHTS),
            "reason": just("set", "upload", "seed", "rollback", "fallback"),
            "changed_at": TIME,
        }
    ),
    "AliasGate": object_of(
        {
            "object": just("prefix.alias.gate"),
            "name": TEXT,
            "alias": TEXT,
            "metric": TEXT,
            "min_score": NUMBER,
            "examples": list_of(_EXAMPLE),
            "updated_at": TIME,
        }
    ),
    "AliasGateDeleted": deleted("prefix.alias.gate", "name", "alias"),
    "Evaluation": object_of(
        {
            "object": just("prefix.evaluation"),
            "name": TEXT,
            "version": DIGEST,
            "scores": map_of(NUMBER),
            "num_examples": COUNT,
            "num_target_tokens": or_null(COUNT),
            "bleu_signature": MAYBE,
            "examples": list_of(
                object_of({"output": MAYBE, "exact_match": or_null(SWITCH), "loss": SCORE})
            ),
        }
    ),
    "Comparison": object_of(
        {
            "object": just("prefix.comparison"),
            "name": TEXT,
            "a": DIGEST,
            "b": DIGEST,
            "loss_a": SCORE,
            "loss_b": SCORE,
            "kl_ab": SCORE,
            "kl_ba": SCORE,
            "same_outputs": COUNT,
            "num_examples": COUNT,
            "examples": list_of(
                object_of(
                    {
                        "a": _SAID,
                        "b": _SAID,
                        "same_output": SWITCH,
                        "target": just("output", "a"),
                        "num_target_tokens": COUNT,
                        "kl_ab": SCORE,
                        "kl_ba": SCORE,
                    }
                )
            ),
        }
    ),
}

PREFIXES: dict[str, Schema] = {**_PREFIXES, **_JUDGED}
"""By name."""
