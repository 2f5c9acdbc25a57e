"""Prompt tuning of PEFT and of TGIS: embeddings, run once through the base model.

In a decoder-only model, keys and values of learned embeddings at positions 0, 1, … depend on
nothing that follows them. So they are a prefix that shifts tokens by its length, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from app.errors import InvalidPrefix, InvalidRequest
from app.prefix.formats.tensors import (
    Tensors,
    base_name,
    check_fact,
    check_length,
    check_values,
)
from app.prefix.prefix import KeyValues, Prefix, PrefixMetadata
from app.prefix.spec import BaseModelSpec

RunEmbeddings = Callable[[torch.Tensor], KeyValues]
"""The base model's keys and values for input embeddings [positions, hidden] from position 0."""

WHAT = "prompt-tuning checkpoint"
PEFT_KINDS = ("PROMPT_TUNING", "P_TUNING")
TGIS_NAMES = {"decoder", "encoder"}

_PAIR = (
    "prompt tuning of an encoder-decoder model cannot become a prefix: its encoder reads the "
    "learned embeddings together with each source, so their keys and values are not fixed; train "
    "prefix tuning instead"
)


def import_prompt_tuning(
    tensors: Tensors,
    config: Mapping[str, Any],
    spec: BaseModelSpec,
    *,
    max_length: int,
    run_embeddings: RunEmbeddings | None,
) -> Prefix:
    """The prefix that acts as the learned embeddings [positions, hidden] do before a prompt.

    `tensors` are PEFT's `prompt_embeddings` or TGIS's `decoder`; `run_embeddings` runs the base
    model `spec`. Raises InvalidPrefix, BaseModelMismatch, or InvalidRequest without a model.
    """
    embeddings = checked_embeddings(tensors, config, spec, max_length)
    if run_embeddings is None:
        raise InvalidRequest(
            "this is prompt tuning: embeddings, which the base model turns into keys and values; "
            "name the served base model with --model"
        )
    module = run_embeddings(embeddings)
    kind = {"peft_type": str(config["peft_type"])} if config else {}
    metadata = PrefixMetadata(
        position_offset=module.length,
        base_model=spec.model_id or base_name(config.get("base_model_name_or_path")),
        base_fingerprint=spec.fingerprint,
        provenance={
            "imported_from": "PEFT" if config else "TGIS",
            "method": "prompt tuning",
            **kind,
        },
    )
    return Prefix({"decoder": module}, metadata)


def checked_embeddings(
    tensors: Tensors, config: Mapping[str, Any], spec: BaseModelSpec, max_length: int
) -> torch.Tensor:
    """The learned embeddings [positions, hidden]; InvalidPrefix or BaseModelMismatch."""
    if "encoder" in spec.modules or "encoder" in tensors:
        raise InvalidPrefix(_PAIR)
    if config:
        _check_config(config, spec)
    if len(tensors) != 1:
        names = ", ".join(sorted(tensors)[:4])
        raise InvalidPrefix(f"not a usable {WHAT}: it holds {ascii(names)} and not one tensor")
    [(name, tensor)] = tensors.items()
    embeddings = check_values(name, tensor, WHAT)
    if embeddings.dim() != 2:
        raise InvalidPrefix(
            f"not a usable {WHAT}: {name} has shape {list(embeddings.shape)}, not [positions, "
            "hidden size]"
        )
    check_length(embeddings.shape[0], max_length, WHAT)
    if config and config.get("num_virtual_tokens") != embeddings.shape[0]:
        raise InvalidPrefix(
            f"not a usable {WHAT}: it has {embeddings.shape[0]} positions and its config says "
            f"num_virtual_tokens {ascii(config.get('num_virtual_tokens'))[:20]}"
        )
    return embeddings


def _check_config(config: Mapping[str, Any], spec: BaseModelSpec) -> None:
    if config.get("modules_to_save"):
        raise InvalidPrefix(
            f"not a usable {WHAT}: its modules_to_save replace weights of the base model, which a "
            "prefix does not do"
        )
    check_fact("task_type", config.get("task_type"), "CAUSAL_LM", spec)
    check_fact("num_layers", config.get("num_layers"), spec.decoder.layers, spec)
