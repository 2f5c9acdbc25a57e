"""The base model's fingerprint: what a prefix was trained on, whatever it is called or cast to."""

from __future__ import annotations

import hashlib
import json

import torch
from transformers import PreTrainedModel

from app.model.families import is_encoder_decoder

_CONFIG_FIELDS = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "activation_function",
    "hidden_act",
    "layer_norm_epsilon",
    "rms_norm_eps",
    "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx",
    "rope_parameters",
)
"""Config fields that change what the weights compute."""

_ENCODER_DECODER_FIELDS = (
    "encoder_layers",
    "decoder_layers",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "scale_embedding",
)
"""The same for models with an encoder."""


def fingerprint_of(module: PreTrainedModel) -> str:
    """SHA-256, hex, over the config fields that matter and every weight as it was stored.

    Tied weights count once. Take it before any cast: it does not depend on the serving dtype.
    """
    config = module.config
    names = _CONFIG_FIELDS + (_ENCODER_DECODER_FIELDS if is_encoder_decoder(config) else ())
    facts = {name: getattr(config, name, None) for name in names}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    seen: set[int] = set()
    for name, tensor in sorted(module.state_dict().items()):
        if tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
