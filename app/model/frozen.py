"""The frozen base model: a transformers module that is called and never written to.

It computes the logits of tokens at positions, under a plan of what each token attends to. There is
one way in which a prefix enters it: transformers lets a model's attention be named, and under our
name every attention layer hands queries, keys and values to the plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from app.errors import UnsupportedModel
from app.model.attention import AttentionPlan
from app.model.encoder_decoder import EncoderDecoder
from app.model.generation_defaults import GenerationDefaults
from app.model.reference import ReferenceRun
from app.model.text import Text
from app.prefix.spec import BaseModelSpec

ATTENTION_NAME = "polyprefix"

_UNSERVED_OPTIONS = ("softcap", "sliding_window", "s_aux")
"""What some layers pass to their attention function and a plan does not do."""


@dataclass(frozen=True, eq=False)
class FrozenModel:
    """A loaded language model in eval mode, without gradients on its weights.

    A model with an encoder has `encoder_decoder`; `forward` is its decoder.
    `dtype` is that of activations, keys and values. `notes` says how it was prepared (packed
    weights, …) and is shown in `/info`; `references` are what plain transformers computes;
    `generation` is what its generation config says of replies.
    """

    hf: PreTrainedModel
    spec: BaseModelSpec
    text: Text
    device: torch.device
    dtype: torch.dtype
    num_heads: int
    notes: Mapping[str, Any]
    references: tuple[ReferenceRun, ...]
    num_parameters: int
    encoder_decoder: EncoderDecoder | None = None
    generation: GenerationDefaults = field(default_factory=GenerationDefaults)

    @property
    def family(self) -> str:
        """transformers' name of the model's type, `gpt2` for example."""
        return str(self.hf.config.model_type)

    @property
    def attention_dropout(self) -> float:
        """The share of attention weights that is dropped: the config's while the model trains."""
        if not self.hf.training:
            return 0.0
        config = self.hf.config
        # BART's word for it, then GPT-2's
        share = getattr(config, "attention_dropout", None)
        return float(getattr(config, "attn_pdrop", 0.0) if share is None else share)

    def min_tokens(self, num_prompt: int) -> int:
        """New tokens before a reply to a prompt of `num_prompt` tokens may end, by default."""
        defaults = self.generation
        if defaults.min_new_tokens is not None:
            return defaults.min_new_tokens
        # behind an encoder only the start token precedes the first new token
        num_before = num_prompt if self.encoder_decoder is None else 1
        return max(defaults.min_length - num_before, 0)

    def source_room(self, asked: int = 0) -> int | None:
        """Tokens of a source that the encoder reads, at most `asked` (0: as many as it can).

        None without an encoder.
        """
        limit = self.spec.source_limit
        return None if limit is None else min(asked or limit, limit)

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, plan: AttentionPlan, keep: Tensor | int = 0
    ) -> Tensor:
        """Logits [rows, kept tokens, vocabulary] for `input_ids` and `position_ids` [rows, tokens].

        `keep` holds the token indices whose logits are wanted (0: all of them).
        """
        if self.encoder_decoder is not None:
            return self.encoder_decoder.decode(input_ids, position_ids, plan, keep)
        output = self.hf(
            input_ids=input_ids,
            position_ids=position_ids,
            use_cache=False,
            logits_to_keep=keep,
            plan=plan,
        )
        return output.logits


def prefix_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    plan: AttentionPlan | None = None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The registered attention function (transformers' AttentionInterface signature).

    Raises UnsupportedModel when a layer asks for something that a plan cannot express.
    """
    for option in _UNSERVED_OPTIONS:
        if options.get(option) is not None:
            raise UnsupportedModel(f"{type(module).__name__} needs {option} in its attention")
    if plan is None or attention_mask is not None:
        raise UnsupportedModel(
            f"{type(module).__name__} did not pass the plan on to its attention function"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    return plan.attend(role_of(module), layer, query, key, value, scale), None


def role_of(module: torch.nn.Module) -> str:
    """Which of `app.prefix.spec.MODULES` an attention layer is.

    BART marks its decoder's layers `is_decoder` and the causal ones among them `is_causal`; the
    layers of decoder-only models are causal, whether they say so or not.
    """
    if getattr(module, "is_causal", True) or not hasattr(module, "is_decoder"):
        return "decoder"
    return "cross" if module.is_decoder else "encoder"


def register_attention() -> None:
    """Make `ATTENTION_NAME` known to transformers. No mask function is registered on purpose:

    with one, transformers would look for packed sequences, a device synchronisation per step.
    """
    AttentionInterface.register(ATTENTION_NAME, prefix_attention)
