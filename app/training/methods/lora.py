"""LoRA by PEFT: low-rank updates of the attention's projections (Hu et al. 2022)."""

from __future__ import annotations

from torch import nn

from app.errors import InvalidRequest
from app.model.frozen import FrozenModel

_TARGETS = {"gpt2": ("c_attn",)}
_USUAL_TARGETS = ("q_proj", "v_proj")


def lora_targets(model: FrozenModel) -> tuple[str, ...]:
    """The projections that LoRA changes by default: queries and values, fused in a GPT-2."""
    return _TARGETS.get(model.family, _USUAL_TARGETS)


def install_lora(
    model: FrozenModel, *, rank: int, alpha: float, targets: tuple[str, ...]
) -> dict[str, nn.Parameter]:
    """Put PEFT's LoRA layers into the model; return their parameters by name.

    Raises InvalidRequest if PEFT is not installed or the model has no such projections.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise InvalidRequest(
            "--method lora needs the library peft; install it with `pip install polyprefix[train]`"
        ) from error
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=list(targets),
        fan_in_fan_out=model.family == "gpt2",
    )
    try:
        inject_adapter_in_model(config, model.hf)
    except ValueError as error:
        raise InvalidRequest(
            f"lora_targets: this base model has no projections named {', '.join(targets)}; by"
            f" default they are {', '.join(lora_targets(model))}"
        ) from error
    return {name: p for name, p in model.hf.named_parameters() if "lora_" in name}
