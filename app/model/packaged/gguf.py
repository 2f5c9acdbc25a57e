"""Converts a GGUF file of a Llama model with a byte-level tokenizer to a Hugging Face folder."""

from __future__ import annotations

import struct
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from app.errors import UnsupportedModel
from app.model.fingerprint import fingerprint_of

DTYPE = torch.bfloat16
"""The folder's dtype. Rounding also hides last-bit differences between NumPy's builds."""


def convert(file: Path, folder: Path) -> str:
    """Write the model and the tokenizer of `file` into `folder`; return the model's fingerprint.

    The quantised weights are computed in float32 and stored as `DTYPE`. Raises UnsupportedModel if
    the file does not hold a Llama model.
    """
    transformers_logging.disable_progress_bar()
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**source)
    except (ImportError, OSError, ValueError, LookupError, struct.error) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnsupportedModel(f"{file} cannot be read as a GGUF model: {reason}") from error
    if not isinstance(loaded, LlamaForCausalLM):
        raise UnsupportedModel(
            f"{file} holds a {type(loaded).__name__}; only Llama models can be converted"
        )
    # transformers refuses to save a model that it has read from GGUF: a new one has no such mark
    config = loaded.config.to_dict()
    config.pop("quantization_config", None)
    config.pop("_name_or_path", None)
    plain = LlamaForCausalLM(type(loaded.config).from_dict(config))
    plain.load_state_dict(loaded.state_dict())
    plain.to(DTYPE).save_pretrained(folder)
    # GGUF names the pre-tokenizer `smollm`: single digits, then bytes; transformers reads the bytes
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
    )
    tokenizer.save_pretrained(folder)
    return fingerprint_of(plain)
