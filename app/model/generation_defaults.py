"""What a model's generation config says about replies: which ids end them, and other defaults.

What draws tokens at random there (`temperature`, `top_p`, …) and `num_beams` is not taken over: a
request or a prefix asks for that.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from app.errors import UnsupportedModel
from app.model.families import is_encoder_decoder

_log = logging.getLogger(__name__)

_DECODING = ("no_repeat_ngram_size", "length_penalty", "early_stopping")
_TAKEN = frozenset(
    (
        *_DECODING,
        "eos_token_id",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "decoder_start_token_id",
        "min_length",
        "min_new_tokens",
    )
)
_SAYS_NOTHING = frozenset(
    (
        "bos_token_id",
        "pad_token_id",
        "use_cache",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "output_logits",
        "return_dict_in_generate",
        "transformers_version",
        "cache_implementation",
    )
)
"""Fields without a meaning for what a reply says."""


@dataclass(frozen=True)
class ReplyFrame:
    """How a model's replies begin and end; None for what the model leaves free.

    `start` is the decoder's first input behind an encoder; `forced_first` the first token after a
    prompt of one token, `forced_last` that of a reply that reaches its limit.
    """

    start: int | None = None
    forced_first: int | None = None
    forced_last: int | None = None


@dataclass(frozen=True)
class GenerationDefaults:
    """Defaults of a model that a prefix and a request override.

    `min_length` counts the tokens before the reply, in a decoder behind an encoder the start token;
    `min_new_tokens` does not, and replaces it. `decoding` has `no_repeat_ngram_size`,
    `length_penalty` and `early_stopping`; `left_out` what the config says besides and is not taken
    over.
    """

    frame: ReplyFrame = ReplyFrame()
    min_length: int = 0
    min_new_tokens: int | None = None
    decoding: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, Any] = field(default_factory=dict)

    @property
    def by_name(self) -> dict[str, Any]:
        """Those that say something, by transformers' names."""
        named = {
            "forced_bos_token_id": self.frame.forced_first,
            "forced_eos_token_id": self.frame.forced_last,
            "min_length": self.min_length or None,
            "min_new_tokens": self.min_new_tokens,
            **self.decoding,
        }
        return {name: value for name, value in named.items() if value is not None}


def generation_defaults(module: PreTrainedModel) -> GenerationDefaults:
    """Read from the generation config that transformers has loaded; says in one line what applies.

    UnsupportedModel as from `reply_frame`.
    """
    said = module.generation_config
    given = {name: getattr(said, name, None) for name in _DECODING}
    stated = said.to_diff_dict().items()
    defaults = GenerationDefaults(
        frame=reply_frame(module),
        min_length=int(getattr(said, "min_length", None) or 0),
        min_new_tokens=getattr(said, "min_new_tokens", None),
        decoding={name: value for name, value in given.items() if value is not None},
        left_out={
            name: value
            for name, value in stated
            if name not in _TAKEN | _SAYS_NOTHING and not name.startswith("_")
        },
    )
    if defaults.by_name or defaults.left_out:
        _log.info(
            "the model's generation config: %s applies; not taken over: %s",
            _listed(defaults.by_name),
            _listed(defaults.left_out),
        )
    return defaults


def reply_frame(module: PreTrainedModel) -> ReplyFrame:
    """Read from the generation config, or the config where that says nothing.

    UnsupportedModel names a token that the model has not, or a start token that it lacks.
    """
    start = None
    if is_encoder_decoder(module.config):
        start = configured_id(module, "decoder_start_token_id")
        if start is None:
            raise UnsupportedModel(
                f"base model of type {module.config.model_type!r} is not supported: "
                "neither its config nor its generation config names a decoder_start_token_id"
            )
    return ReplyFrame(
        start,
        configured_id(module, "forced_bos_token_id"),
        configured_id(module, "forced_eos_token_id"),
    )


def end_token_ids(
    module: PreTrainedModel, vocab_size: int, tokenizer_eos_id: int | None
) -> list[int]:
    """Ids that end a reply: the generation config's, else the config's, else the tokenizer's.

    Ids that the model has not can never be sampled and are left out with a warning.
    """
    said = module.generation_config.eos_token_id
    said = module.config.eos_token_id if said is None else said
    named = _as_list(said)
    known = [token for token in named if 0 <= token < vocab_size]
    if len(known) < len(named):
        _log.warning(
            "eos_token_id names %s, which the model's vocabulary of %d has not: left out",
            ", ".join(str(token) for token in named if token not in known),
            vocab_size,
        )
    own = tokenizer_eos_id if tokenizer_eos_id is not None else -1
    has_own = 0 <= own < vocab_size
    if not known:
        if named and has_own:
            _log.warning("the tokenizer's end-of-text token %d ends replies instead", own)
        return [own] if has_own else []
    if has_own and own not in known:
        _log.warning(
            "the tokenizer's end-of-text token %d does not end replies; %s does, and ends the"
            " targets that prefixes are trained on",
            own,
            known[0],
        )
    return known


def configured_id(module: PreTrainedModel, name: str) -> int | None:
    """A token id of the generation config, or of the config where that says nothing.

    UnsupportedModel if the model has no such token.
    """
    value = getattr(module.generation_config, name, None)
    value = getattr(module.config, name, None) if value is None else value
    ids = _as_list(value)
    if not ids:
        return None
    if not 0 <= ids[0] < int(module.config.vocab_size):
        raise UnsupportedModel(
            f"base model of type {module.config.model_type!r} is not supported: its {name} is "
            f"{ids[0]}, outside its vocabulary of {module.config.vocab_size} tokens"
        )
    return ids[0]


def check_padding(config: PretrainedConfig) -> None:
    """Raise UnsupportedModel for a pad token with which the model's modules cannot be built."""
    pad = getattr(config, "pad_token_id", None)
    pads = is_encoder_decoder(config) or config.model_type != "gpt2"
    if pads and isinstance(pad, int) and pad >= int(config.vocab_size):
        raise UnsupportedModel(
            f"base model of type {config.model_type!r} is not supported: its pad_token_id is "
            f"{pad}, outside its vocabulary of {config.vocab_size} tokens"
        )


def _as_list(value: int | Sequence[int] | None) -> list[int]:
    if value is None:
        return []
    return [int(value)] if isinstance(value, int) else [int(token) for token in value]


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items()) or "nothing"
