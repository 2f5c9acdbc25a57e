"""Tiny configs of many architectures: those that are served and those that are refused."""

from __future__ import annotations

from transformers import (
    BloomConfig,
    CodeGenConfig,
    FalconConfig,
    Gemma2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GptOssConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MBartConfig,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MptConfig,
    OPTConfig,
    OPTForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    StableLmConfig,
)

from tests.tiny import gpt2_config, llama_like


def _plain(**changes: object) -> dict[str, object]:
    """Like `llama_like` for families without grouped-query heads."""
    facts = llama_like(**changes)
    del facts["num_key_value_heads"]
    return facts


def _opt() -> OPTConfig:
    facts = _plain(ffn_dim=48, word_embed_proj_dim=32, init_std=0.3)
    for name in ("intermediate_size", "initializer_range"):
        del facts[name]
    return OPTConfig(**facts)


SERVED: dict[str, tuple[PreTrainedConfig, type]] = {
    "gpt2": (gpt2_config(), GPT2LMHeadModel),
    "gpt2-scaled-by-layer": (
        gpt2_config(scale_attn_by_inverse_layer_idx=True),
        GPT2LMHeadModel,
    ),
    "gpt2-relu": (gpt2_config(activation_function="relu"), GPT2LMHeadModel),
    "gpt-neox": (GPTNeoXConfig(**_plain()), GPTNeoXForCausalLM),
    "llama": (LlamaConfig(**llama_like()), LlamaForCausalLM),
    "llama-scaled-rope": (
        LlamaConfig(
            **llama_like(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4})
        ),
        LlamaForCausalLM,
    ),
    "mistral-without-window": (
        MistralConfig(**llama_like(sliding_window=None)),
        MistralForCausalLM,
    ),
    "opt": (_opt(), OPTForCausalLM),
    "phi": (PhiConfig(**_plain()), PhiForCausalLM),
    "qwen2": (Qwen2Config(**llama_like()), Qwen2ForCausalLM),
    "qwen3": (Qwen3Config(**llama_like(head_dim=16)), Qwen3ForCausalLM),
}
"""Name → config and class of what must equal plain transformers."""

REFUSED: dict[str, tuple[PreTrainedConfig, str]] = {
    "gpt-j": (GPTJConfig(n_embd=32, n_layer=1, n_head=4, rotary_dim=4), "attention of its own"),
    "gpt-neo": (
        GPTNeoConfig(hidden_size=32, num_layers=2, attention_types=[[["global", "local"], 1]]),
        "attention of its own",
    ),
    "bloom": (BloomConfig(hidden_size=32, n_layer=1, n_head=4), "attention of its own"),
    "falcon": (FalconConfig(hidden_size=32, num_hidden_layers=1), "attention of its own"),
    "falcon-alibi": (
        FalconConfig(hidden_size=32, num_hidden_layers=1, alibi=True),
        "attention of its own",
    ),
    "codegen": (
        CodeGenConfig(n_embd=32, n_layer=1, n_head=4, rotary_dim=4),
        "attention of its own",
    ),
    "mpt": (MptConfig(d_model=32, n_layers=1, n_heads=4), "attention of its own"),
    "mistral-with-window": (
        MistralConfig(**llama_like(sliding_window=16)),
        "sliding-window",
    ),
    "qwen2-with-window": (
        Qwen2Config(**llama_like(use_sliding_window=True, sliding_window=16, max_window_layers=1)),
        "sliding-window",
    ),
    "gemma2": (
        Gemma2Config(
            **llama_like(head_dim=8, sliding_window=None, layer_types=["full_attention"] * 2)
        ),
        "soft-capped",
    ),
    "gpt-oss": (
        GptOssConfig(
            **llama_like(head_dim=8, sliding_window=None, layer_types=["full_attention"] * 2)
        ),
        "sinks",
    ),
    "llama-with-alibi": (LlamaConfig(**llama_like(alibi=True)), "ALiBi"),
    "llama-dynamic-rope": (
        LlamaConfig(
            **llama_like(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
        ),
        "batch's longest row",
    ),
    "llama-longrope": (
        LlamaConfig(
            **llama_like(
                rope_parameters={
                    "rope_type": "longrope",
                    "factor": 2.0,
                    "rope_theta": 1e4,
                    "original_max_position_embeddings": 64,
                    "short_factor": [1.0] * 4,
                    "long_factor": [2.0] * 4,
                }
            )
        ),
        "batch's longest row",
    ),
    "gpt2-upcast": (gpt2_config(reorder_and_upcast_attn=True), "reorder_and_upcast_attn"),
    "gpt2-cross-attention": (gpt2_config(add_cross_attention=True), "an encoder"),
    "mbart": (MBartConfig(d_model=16, encoder_layers=1, decoder_layers=1), "an encoder"),
    "mixtral": (MixtralConfig(**llama_like(sliding_window=None)), "expert routing"),
}
"""Name → config and a pattern of the feature that the refusal names."""

STABLELM = StableLmConfig(**llama_like(partial_rotary_factor=0.5))
"""Nothing in this config tells that its attention drops the plan: only running it does."""
