"""Which model families the engine can run, and which it refuses by the name of what they need.

What can be read off a config is refused here, before weights are loaded; what can't is caught by
the start-up probe.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import PretrainedConfig

from app.errors import UnsupportedModel

_OWN_ATTENTION = frozenset({"bloom", "codegen", "falcon", "gpt_neo", "gptj", "mpt"})
_ENCODER_DECODERS = frozenset({"bart"})
_ROPE_BY_LENGTH = frozenset({"dynamic", "longrope"})


def is_encoder_decoder(config: PretrainedConfig) -> bool:
    """Whether the model has an encoder, whose output its decoder attends to."""
    return bool(getattr(config, "is_encoder_decoder", False))


def check_supported(config: PretrainedConfig) -> None:
    """Raise UnsupportedModel, naming the feature, if the config asks for what we do not do."""
    for needs, feature in _REFUSALS:
        if needs(config):
            raise UnsupportedModel(
                f"base model of type {config.model_type!r} is not supported: it needs {feature}"
            )
    if getattr(config, "max_position_embeddings", None) is None:
        raise UnsupportedModel(
            f"base model of type {config.model_type!r} is not supported: "
            "its config names no max_position_embeddings, so no context limit can be kept"
        )


def _rope_types(config: PretrainedConfig) -> set[str]:
    """Every rope type that the config names, flat or per layer type."""
    found: set[str] = set()
    stack: list[Any] = [getattr(config, "rope_parameters", None)]
    stack.append(getattr(config, "rope_scaling", None))
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            found.update(str(value[key]) for key in ("rope_type", "type") if key in value)
            stack.extend(value.values())
    return found


def _slides(config: PretrainedConfig) -> bool:
    layer_types = getattr(config, "layer_types", None) or ()
    if any("sliding" in kind or "chunked" in kind for kind in layer_types):
        return True
    window = getattr(config, "sliding_window", None)
    return window is not None and bool(getattr(config, "use_sliding_window", True))


def _has(*names: str) -> Callable[[PretrainedConfig], bool]:
    return lambda config: any(bool(getattr(config, name, None)) for name in names)


_REFUSALS: tuple[tuple[Callable[[PretrainedConfig], bool], str], ...] = (
    (
        lambda config: is_encoder_decoder(config) and config.model_type not in _ENCODER_DECODERS,
        "an encoder of another kind than BART's",
    ),
    (_has("add_cross_attention"), "an encoder that it does not bring along"),
    (
        lambda config: config.model_type in _OWN_ATTENTION,
        "an attention of its own that never calls transformers' attention interface",
    ),
    (_has("alibi"), "ALiBi position biases"),
    (_slides, "sliding-window or chunked attention"),
    (
        _has("attn_logit_softcapping", "attn_logit_softcap", "attention_logit_cap"),
        "soft-capped attention logits",
    ),
    (lambda config: config.model_type == "gpt_oss", "attention sinks"),
    (
        lambda config: bool(_rope_types(config) & _ROPE_BY_LENGTH),
        "rotary positions that depend on the batch's longest row (dynamic or longrope)",
    ),
    (
        _has("reorder_and_upcast_attn"),
        "reordered and upcast attention (reorder_and_upcast_attn)",
    ),
    (
        _has("num_local_experts", "num_experts", "n_routed_experts"),
        "expert routing, where one row's tokens can displace another's",
    ),
)
