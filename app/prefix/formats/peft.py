"""PEFT's PREFIX_TUNING and CARTRIDGE adapters: read, and written so that PEFT loads them.

Checked against PEFT 0.21.2. A decoder-only model gets the stored keys and values as its cache, so
tokens start behind them (`position_offset` = length) and the conversion is exact. Encoder-decoder
models get them in an order of PEFT's own, see `_pair_slices`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save

from app.errors import InvalidPrefix, InvalidRequest
from app.prefix.formats.tensors import (
    Tensors,
    base_name,
    check_fact,
    check_length,
    check_values,
    keys_values,
    rows_of,
    width,
)
from app.prefix.prefix import KeyValues, Prefix, PrefixMetadata
from app.prefix.spec import BaseModelSpec
from app.prefix.strict_json import parse_object

TENSOR = "prompt_embeddings"
CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
MAX_CONFIG_BYTES = 16 * 1024
KINDS = ("PREFIX_TUNING", "CARTRIDGE")

_WHAT = "PEFT adapter"


def parse_config(text: str) -> dict[str, Any]:
    """The object in the text of an `adapter_config.json`; InvalidPrefix says what is wrong."""
    if len(text) > MAX_CONFIG_BYTES:
        raise InvalidPrefix(f"the adapter's config is longer than {MAX_CONFIG_BYTES} characters")
    try:
        return parse_object(text, floats=True)
    except ValueError as error:
        raise InvalidPrefix(f"the adapter's config {error}") from None


def import_peft(
    tensors: Tensors, config: Mapping[str, Any], spec: BaseModelSpec, max_length: int
) -> Prefix:
    """The prefix that PEFT makes of these tensors for base model `spec`.

    `config` holds the fields of `adapter_config.json`, of one of `KINDS`; `max_length` bounds the
    positions. Raises InvalidPrefix, or BaseModelMismatch if it is for another base model.
    """
    _check_saved_modules(config)
    _check_base(config, spec)
    if set(tensors) != {TENSOR}:
        others = sorted(set(tensors) - {TENSOR})
        found = f"it also holds {ascii(others[0][:60])}" if others else f"it has no {TENSOR}"
        raise InvalidPrefix(f"not a usable {_WHAT}: the only tensor must be {TENSOR}; {found}")
    rows = check_values(TENSOR, tensors[TENSOR], _WHAT)
    shape = spec.decoder
    length = config.get("num_virtual_tokens")
    if rows.dim() != 2 or rows.shape[1] != width(shape) or rows.shape[0] != length:
        raise InvalidPrefix(
            f"not a usable {_WHAT}: {TENSOR} has shape {list(rows.shape)}; its config and this "
            f"model need [{ascii(length)[:20]}, {width(shape)}] (num_virtual_tokens, layers × 2 × "
            "heads × head size)"
        )
    check_length(rows.shape[0], max_length, _WHAT)
    module = keys_values(rows, shape)
    if "encoder" in spec.modules:
        module = _as_pair_model_reads(module)
    version = config.get("peft_version")
    metadata = PrefixMetadata(
        position_offset=module.length,
        base_model=base_name(config.get("base_model_name_or_path")),
        provenance={
            "imported_from": "PEFT",
            "peft_type": str(config["peft_type"]),
            **({"peft_version": version[:32]} if isinstance(version, str) else {}),
        },
    )
    return Prefix({"decoder": module}, metadata)


def export_peft(
    prefix: Prefix, *, encoder_decoder: bool, base_model: str | None = None
) -> dict[str, bytes]:
    """The files of a PEFT adapter with this prefix, by name; InvalidRequest if PEFT has none.

    With `encoder_decoder` the base model has an encoder. `base_model` is what PEFT loads by
    itself (`AutoPeftModel`), by default the base model that the prefix names.
    """
    module = prefix.decoder
    others = sorted(set(prefix.modules) - {"decoder"})
    if others:
        raise InvalidRequest(
            f"this prefix has keys and values for {' and '.join(others)} attention; PEFT's prefix "
            "tuning reaches decoder self-attention only, so it cannot be exported"
        )
    if prefix.metadata.position_offset != module.length:
        raise InvalidRequest(
            f"this prefix shifts tokens by {prefix.metadata.position_offset} positions; with PEFT "
            f"they always start at {module.length}, its length, so it cannot be exported"
        )
    layers, heads, length, head_dim = module.keys.shape
    if encoder_decoder:
        module = _as_pair_model_stores(module)
    config = {
        "auto_mapping": None,
        "base_model_name_or_path": base_model or prefix.metadata.base_model,
        "encoder_hidden_size": heads * head_dim,
        "inference_mode": True,
        "num_attention_heads": heads,
        "num_layers": layers,
        "num_transformer_submodules": 2 if encoder_decoder else 1,
        "num_virtual_tokens": length,
        "peft_type": "PREFIX_TUNING",
        "prefix_projection": False,
        "revision": None,
        "task_type": "SEQ_2_SEQ_LM" if encoder_decoder else "CAUSAL_LM",
        "token_dim": heads * head_dim,
    }
    return {
        CONFIG_FILE: (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
        TENSOR_FILE: save({TENSOR: rows_of(module)}, metadata={"format": "pt"}),
    }


def _check_saved_modules(config: Mapping[str, Any]) -> None:
    if config.get("modules_to_save"):
        raise InvalidPrefix(
            f"not a usable {_WHAT}: its modules_to_save replace weights of the base model, which a "
            "prefix does not do; train it without them"
        )


def _check_base(config: Mapping[str, Any], spec: BaseModelSpec) -> None:
    """What the config says of the base model must hold for the one that is served."""
    shape, has_encoder = spec.decoder, "encoder" in spec.modules
    check_fact("task_type", config.get("task_type"), _task(encoder_decoder=has_encoder), spec)
    check_fact("num_layers", config.get("num_layers"), shape.layers, spec)
    check_fact("num_attention_heads", config.get("num_attention_heads"), shape.kv_heads, spec)
    check_fact("token_dim", config.get("token_dim"), shape.kv_heads * shape.head_dim, spec)
    submodules = config.get("num_transformer_submodules")
    check_fact("num_transformer_submodules", submodules, 2 if has_encoder else 1, spec)
    if has_encoder and spec.modules["encoder"].layers != shape.layers:
        raise InvalidPrefix(
            f"not a usable {_WHAT}: encoder and decoder of {spec.model_id!r} differ in their "
            "layers, and PEFT cannot run prefix tuning on such a model"
        )


def _task(*, encoder_decoder: bool) -> str:
    return "SEQ_2_SEQ_LM" if encoder_decoder else "CAUSAL_LM"


def _pair_slices(layers: int) -> list[tuple[int, int]]:
    """Which of the 2 × layers stored slices are key and value of each decoder layer.

    For an encoder-decoder PEFT doubles the slices, splits them by four, and uses the first two of
    each part (`PeftModel.get_prompt`, `EncoderDecoderCache`). With an even number of layers the
    first half of them and the second share keys and values, and half of the slices are unused.
    """
    return [((4 * layer) % (2 * layers), (4 * layer + 1) % (2 * layers)) for layer in range(layers)]


def _as_pair_model_reads(stored: KeyValues) -> KeyValues:
    """Keys and values as the decoder of PEFT's encoder-decoder attends to them."""
    slices = torch.stack([stored.keys, stored.values], dim=1).flatten(0, 1)
    pairs = _pair_slices(stored.keys.shape[0])
    return KeyValues(*(slices[[pair[part] for pair in pairs]].contiguous() for part in (0, 1)))


def _as_pair_model_stores(wanted: KeyValues) -> KeyValues:
    """The inverse of `_as_pair_model_reads`; InvalidRequest if there is none."""
    layers = wanted.keys.shape[0]
    slices = wanted.keys.new_zeros(2 * layers, *wanted.keys.shape[1:])
    for layer, (key, value) in enumerate(_pair_slices(layers)):
        slices[key], slices[value] = wanted.keys[layer], wanted.values[layer]
    stored = KeyValues(slices[0::2].contiguous(), slices[1::2].contiguous())
    read = _as_pair_model_reads(stored)
    if not (torch.equal(read.keys, wanted.keys) and torch.equal(read.values, wanted.values)):
        raise InvalidRequest(
            f"with PEFT, decoder layers 0 to {layers // 2 - 1} of a model with {layers} layers "
            "share their prefix with the layers of the second half; in this prefix they differ, so "
            "it cannot be exported"
        )
    return stored
