"""Rectangular forward passes: training, scoring and the keys and values of real words.

The same model code and the same attention function as serving, with another plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from app.errors import BaseModelMismatch, InvalidPrefix, UnsupportedModel
from app.model.attention import DensePlan, OverflowPlan, RecordingPlan
from app.model.frozen import FrozenModel
from app.prefix.prefix import KeyValues, Prefix


def dense_logits(
    model: FrozenModel,
    input_ids: torch.Tensor,
    prefix: KeyValues | None = None,
    *,
    position_offset: int = 0,
    keep: torch.Tensor | int = 0,
) -> torch.Tensor:
    """Logits [rows, kept tokens, vocabulary] of right-padded `input_ids` [rows, tokens].

    `prefix` [layers, kv_heads, length, head_dim] is attended to by every row; gradients flow into
    it. Tokens are at positions `position_offset`, `position_offset + 1`, … `keep` holds the
    token indices whose logits are wanted (0: all of them).
    """
    rows, num_tokens = input_ids.shape
    positions = torch.arange(num_tokens, device=input_ids.device) + position_offset
    plan = DensePlan({} if prefix is None else {"decoder": prefix}, dropout=model.attention_dropout)
    return model.forward(input_ids, positions.expand(rows, -1), plan, keep)


def dense_pair_logits(
    model: FrozenModel,
    source_ids: torch.Tensor,
    source_mask: torch.Tensor,
    decoder_ids: torch.Tensor,
    modules: Mapping[str, KeyValues],
    *,
    position_offset: int = 0,
    keep: torch.Tensor | int = 0,
) -> torch.Tensor:
    """Logits [rows, kept tokens, vocabulary] of an encoder-decoder, with gradients to prefixes.

    `source_ids` and `source_mask` (True at real tokens) are [rows, source tokens], `decoder_ids`
    [rows, target tokens], all right-padded. `modules` maps roles to prefixes. The encoder's
    positions count from 0 and the decoder's from `position_offset`, whatever the prefixes' lengths
    (the authors' BART: 0). `keep` as in `dense_logits`, of the decoder's tokens.
    """
    if model.encoder_decoder is None:
        raise UnsupportedModel(f"base model of type {model.family!r} has no encoder")
    plan = DensePlan(modules, source_mask, model.attention_dropout)
    return model.encoder_decoder.teach(
        source_ids, decoder_ids, plan, position_offset=position_offset, keep=keep
    )


_CHECKED_TOKENS = 8


@torch.inference_mode()
def check_finite(model: FrozenModel, prefix: Prefix) -> None:
    """Raise InvalidPrefix unless the model's numbers stay finite with `prefix`, on its device.

    By torch's attention and by bounds that hold for every kernel, so that no machine takes a file
    that another refuses. A few tokens from all over the vocabulary follow the prefix.
    """
    vocabulary, limit = int(model.hf.config.vocab_size), model.spec.context_limit
    offset = prefix.metadata.position_offset
    count = min(_CHECKED_TOKENS, limit - offset)
    if count < 1:
        return  # no prompt fits behind it; running one raises an error
    step = max(1, vocabulary // _CHECKED_TOKENS)
    ids = torch.arange(count, device=model.device)[None] * step % vocabulary
    plan = OverflowPlan(prefix.modules)
    if model.encoder_decoder is not None:
        logits = model.encoder_decoder.teach(ids, ids, plan, position_offset=offset)
    else:
        positions = torch.arange(count, device=model.device)[None] + offset
        logits = model.forward(ids, positions, plan)
    if not bool(torch.isfinite(logits).all()):
        raise InvalidPrefix(
            "not a usable prefix: with it the model's next-token logits are not finite"
        )


@torch.inference_mode()
def keys_values_of(
    model: FrozenModel,
    token_ids: Sequence[int],
    source_ids: Sequence[int] = (),
    *,
    on: Prefix | None = None,
) -> KeyValues:
    """The model's own keys and values for `token_ids` at positions 0, 1, …

    They are those of decoder self-attention; an encoder, if there is one, reads `source_ids`. With
    the prefix `on`, the model reads them behind it, at the positions that follow.
    As a prefix with `position_offset` = their number they act exactly as if the tokens were
    prepended to the prompt (Li & Liang 2021, initialisation by real words).
    """
    input_ids = torch.tensor([list(token_ids)], device=model.device)
    plan = RecordingPlan() if on is None else RecordingPlan(on.modules)
    offset = 0 if on is None else on.metadata.position_offset
    if model.encoder_decoder is not None:
        read = torch.tensor([list(source_ids)], device=model.device)
        model.encoder_decoder.teach(read, input_ids, plan, position_offset=offset)
    else:
        positions = torch.arange(input_ids.shape[1], device=model.device)[None] + offset
        model.forward(input_ids, positions, plan, 1)
    recorded = plan.recorded()["decoder"]
    # clones made outside inference mode may take part in training
    with torch.inference_mode(False):
        return KeyValues(recorded.keys.clone(), recorded.values.clone())


@torch.inference_mode()
def keys_values_of_embeddings(model: FrozenModel, embeddings: torch.Tensor) -> KeyValues:
    """As `keys_values_of`, for input embeddings [positions, hidden] of prompt tuning (Lester 2021).

    Of decoder-only models. On the host, in the model's dtype. Raises BaseModelMismatch if the
    model's embeddings have another width, UnsupportedModel if it has an encoder.
    """
    if model.encoder_decoder is not None:
        raise UnsupportedModel("prompt tuning of a model with an encoder has no fixed keys")
    positions, found = embeddings.shape
    width = int(model.hf.get_input_embeddings().weight.shape[1])
    if found != width:
        raise BaseModelMismatch(
            f"the learned embeddings have {found} numbers each; those of {model.spec.model_id!r} "
            f"have {width}"
        )
    plan = RecordingPlan()
    model.hf(
        inputs_embeds=embeddings.to(model.device, model.dtype)[None],
        position_ids=torch.arange(positions, device=model.device)[None],
        use_cache=False,
        logits_to_keep=1,
        plan=plan,
    )
    recorded = plan.recorded()["decoder"]
    with torch.inference_mode(False):
        return KeyValues(recorded.keys.cpu().clone(), recorded.values.cpu().clone())
