"""Loading a base model from a hub id or a folder: device, dtype, weights, tokenizer, refusals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from app.errors import UnsupportedModel
from app.model.encoder_decoder import EncoderDecoder
from app.model.families import check_supported, is_encoder_decoder
from app.model.fingerprint import fingerprint_of
from app.model.frozen import ATTENTION_NAME, FrozenModel, register_attention
from app.model.generation_defaults import check_padding, end_token_ids, generation_defaults
from app.model.packed import pack_linear_layers
from app.model.reference import reference_runs
from app.model.source import check_place, check_weights
from app.model.text import Text, TokenizerFacts
from app.prefix.spec import BaseModelSpec, ModuleShape

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_model(
    name_or_path: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    served_name: str | None = None,
    packed: bool = True,
) -> FrozenModel:
    """Load a frozen language model: a decoder alone, or BART.

    `name_or_path` is a Hugging Face id or a local folder; `device` is auto, cpu or cuda (or
    cuda:N); `dtype` is auto, float32 or bfloat16. With `packed`, linear layers on a CPU are
    reordered; gradients flow through them to their inputs. What changes weights loads without.
    Raises UnsupportedModel when the model needs something that the engine does not do.
    """
    check_place(name_or_path)
    register_attention()
    where = resolve_device(device)
    config = _load_config(name_or_path)
    check_supported(config)
    check_weights(name_or_path)
    check_padding(config)
    module = _load_module(name_or_path, config)
    fingerprint = fingerprint_of(module)
    target = resolve_dtype(dtype, where)
    num_parameters = sum(weight.numel() for weight in module.parameters())
    module.requires_grad_(False).eval().to(device=where, dtype=target)
    references = reference_runs(module, int(config.vocab_size))
    _use_our_attention(module)
    has_encoder = is_encoder_decoder(config)
    encoder_decoder = EncoderDecoder(module) if has_encoder else None
    notes = pack_linear_layers(module) if packed else {"packed_weights": "off"}
    served = served_name or Path(name_or_path).resolve().name
    if served_name is None and not Path(name_or_path).exists():
        served = name_or_path
    return FrozenModel(
        hf=module,
        spec=BaseModelSpec(
            model_id=served,
            fingerprint=fingerprint,
            modules=module_shapes(config),
            context_limit=int(config.max_position_embeddings),
            source_limit=int(config.max_position_embeddings) if has_encoder else None,
        ),
        text=_load_text(name_or_path, module),
        device=where,
        dtype=target,
        num_heads=int(
            config.decoder_attention_heads if has_encoder else config.num_attention_heads
        ),
        notes=notes,
        references=references,
        num_parameters=num_parameters,
        encoder_decoder=encoder_decoder,
        generation=generation_defaults(module),
    )


def hide_progress_bars() -> None:
    """Load models without the library's progress bars, in this process."""
    transformers_logging.disable_progress_bar()


def resolve_device(device: str) -> torch.device:
    """The device that `auto`, `cpu`, `cuda` or `cuda:N` stands for on this machine."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise UnsupportedModel(f"device {device!r} is none of auto, cpu, cuda, cuda:N") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise UnsupportedModel(f"device {device!r} was asked for, but torch sees no CUDA device")
    return resolved


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The dtype that `auto` stands for: bfloat16 where the hardware multiplies it, else float32."""
    if dtype != "auto":
        if dtype not in _DTYPES:
            raise UnsupportedModel(f"dtype {dtype!r} is none of auto, {', '.join(_DTYPES)}")
        return _DTYPES[dtype]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if _cpu_multiplies_bfloat16() else torch.float32


def _cpu_multiplies_bfloat16() -> bool:
    """Whether the CPU has bfloat16 products (AVX512-BF16 or AMX); emulated ones are slow."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check)() for check in checks if hasattr(torch.cpu, check))


@contextmanager
def _named_failures(name_or_path: str) -> Iterator[None]:
    """What a library says about a missing or damaged part becomes one line with its name."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnsupportedModel(f"base model {name_or_path!r} cannot be loaded: {reason}") from error


def _load_config(name_or_path: str) -> PretrainedConfig:
    with _named_failures(name_or_path):
        return AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)


def _load_module(name_or_path: str, config: PretrainedConfig) -> PreTrainedModel:
    with _named_failures(name_or_path):
        kind = AutoModelForSeq2SeqLM if is_encoder_decoder(config) else AutoModelForCausalLM
        module, report = kind.from_pretrained(
            name_or_path,
            config=config,
            dtype="auto",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise UnsupportedModel(
            f"base model {name_or_path!r} cannot be loaded: its files lack {len(missing)} of its "
            f"weights, {missing[0]} among them"
        )
    return module


def _use_our_attention(module: PreTrainedModel) -> None:
    try:
        module.set_attn_implementation(ATTENTION_NAME)
    except ValueError as error:
        raise UnsupportedModel(
            f"base model of type {module.config.model_type!r} is not supported: "
            f"its attention cannot be replaced ({error})"
        ) from error


def module_shapes(config: PretrainedConfig) -> dict[str, ModuleShape]:
    """What prefixes must look like, by role."""
    if not is_encoder_decoder(config):
        return {"decoder": _decoder_shape(config)}
    width = int(config.d_model)
    encoder_heads, heads = int(config.encoder_attention_heads), int(config.decoder_attention_heads)
    decoder = ModuleShape(int(config.decoder_layers), heads, width // heads)
    encoder = ModuleShape(int(config.encoder_layers), encoder_heads, width // encoder_heads)
    return {"decoder": decoder, "encoder": encoder, "cross": decoder}


def _decoder_shape(config: PretrainedConfig) -> ModuleShape:
    heads = int(config.num_attention_heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return ModuleShape(int(config.num_hidden_layers), int(kv_heads), int(head_dim))


def _load_text(name_or_path: str, module: PreTrainedModel) -> Text:
    with _named_failures(name_or_path):
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UnsupportedModel(
            f"the tokenizer of {name_or_path!r} has no fast implementation (tokenizer.json)"
        )
    if backend.get_vocab_size(with_added_tokens=False) == 0:
        # what transformers makes up for a GPT-2 folder that holds no tokenizer
        raise UnsupportedModel(f"base model {name_or_path!r} cannot be loaded: it has no tokenizer")
    vocab_size = int(module.config.vocab_size)
    return Text(
        backend.to_str(),
        vocab_size=vocab_size,
        eos_token_ids=end_token_ids(module, vocab_size, tokenizer.eos_token_id),
        facts=_tokenizer_facts(tokenizer),
    )


def _tokenizer_facts(tokenizer: PreTrainedTokenizerBase) -> TokenizerFacts:
    """What its configuration says, as transformers decodes by it: of a BPE nothing is cleaned."""
    is_bpe = type(tokenizer.backend_tokenizer.model).__name__ == "BPE"
    forced = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
    cleans_up = bool(tokenizer.clean_up_tokenization_spaces)
    template = getattr(tokenizer, "chat_template", None)
    return TokenizerFacts(
        bos=tokenizer.bos_token,
        eos=tokenizer.eos_token,
        pad=tokenizer.pad_token,
        unk=tokenizer.unk_token,
        cleans_up=cleans_up and (not is_bpe or bool(getattr(tokenizer, forced, False))),
        chat_template=template if isinstance(template, str) else None,
        kind=type(tokenizer).__name__,
    )
