"""The names of the training methods, and which of them give a prefix that can be served."""

from __future__ import annotations

import math
from collections.abc import Sequence

from app.errors import InvalidRequest

PEFT_METHODS = ("peft", "peft-projection")
"""Prefix-tuning as PEFT does it."""
PREFIX_METHODS = ("prefix", "prefix-direct", "embedding", *PEFT_METHODS)
"""Methods whose result is a prefix file."""
FROZEN_METHODS = (*PREFIX_METHODS, "infix")
"""Methods that leave the base model as it is, so that runs may share it."""
WEIGHT_METHODS = ("finetune", "finetune-top2", "adapter", "lora")
"""Methods that change or add weights of the base model."""
ADAPTER_SHARES = {"adapter-3%": 0.03, "adapter-0.1%": 0.001}
"""The paper's adapters: `adapter` with these shares of the model's parameters."""
METHOD_TITLES = {
    "prefix": "prefix-tuning (Li & Liang 2021), reparameterised",
    "prefix-direct": "prefix-tuning (Li & Liang 2021), keys and values trained directly",
    "embedding": "embedding-only tuning (Li & Liang 2021, ablation)",
    "peft": "prefix-tuning as in PEFT",
    "peft-projection": "prefix-tuning as in PEFT, with its projection",
    "infix": "infix-tuning (Li & Liang 2021, ablation)",
    "finetune": "fine-tuning of all weights",
    "finetune-top2": "fine-tuning of the last two layers",
    "adapter": "bottleneck adapters (Houlsby et al. 2019)",
    "lora": "LoRA (Hu et al. 2022), by PEFT",
}
METHODS = (*FROZEN_METHODS, *WEIGHT_METHODS)
DECODER_ONLY = {
    "embedding": "because its encoder lets the trained positions see the input",
    "infix": "because its encoder lets the trained positions see the input",
    "peft": "because PEFT's prefix reaches only the decoder there",
    "peft-projection": "because PEFT's prefix reaches only the decoder there",
}
"""Methods that a model with an encoder does not have, and why."""

METHODS_WITH = {
    "depth": ("prefix", "infix"),
    "prefix_dropout": FROZEN_METHODS,
    "adapter_share": ("adapter",),
    "lora_rank": ("lora",),
    "lora_alpha": ("lora",),
    "lora_targets": ("lora",),
}
"""The methods that use a setting, for settings of a recipe that not all methods use."""


def check_method(method: str, known: Sequence[str] = METHODS) -> None:
    """Raise InvalidRequest for a method that is not `known`."""
    if method not in known:
        raise InvalidRequest(f"method: there is no {method!r}; choose one of {', '.join(known)}")


def sized_method(method: str, adapter_share: float) -> str:
    """The method's own name, but of an adapter of the paper's sizes the one that has the size."""
    if method == "adapter":
        for name, share in ADAPTER_SHARES.items():
            if math.isclose(adapter_share, share):
                return name
    return method


def check_family(method: str, *, with_encoder: bool) -> None:
    """Raise InvalidRequest if models with an encoder do not have this method."""
    if with_encoder and method in DECODER_ONLY:
        raise InvalidRequest(
            f"method: {method} is not defined for a model with an encoder, {DECODER_ONLY[method]};"
            " use the method prefix or prefix-direct"
        )
