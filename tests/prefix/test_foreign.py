"""Files that are no prefix files are named by what they look like."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import save
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from app.cli import app
from app.errors import FileTooLarge, InvalidPrefix
from app.model.frozen import FrozenModel
from app.prefix.codec import decode, encode
from app.prefix.foreign import START_BYTES, looks_like, looks_like_file
from tests.server import serving
from tests.tiny import random_prefix


def tensors(*names: str) -> bytes:
    return save({name: torch.zeros(2, 3) for name in names}, metadata={"format": "pt"})


def pickled(*names: str, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    state = {name: torch.zeros(2, 3) for name in names}
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def archive(kind: str) -> bytes:
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as packed:
            packed.writestr("prefix.safetensors", b"x" * 100)
    else:
        with tarfile.open(fileobj=file, mode="w") as tar:
            tar.addfile(tarfile.TarInfo("prefix.safetensors"))
    return file.getvalue()


def arrays(*, zipped: bool) -> bytes:
    file = io.BytesIO()
    np.savez(file, keys=np.zeros(3)) if zipped else np.save(file, np.zeros(3))
    return file.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PREFIX_TUNINGS = "transformer.prefix_tuning.prefix_tunings.e2e.self_prefix.wte.weight"

FILES = {
    "PEFT prefix": (tensors("prompt_embeddings"), ("PEFT", "prefix tuning", "x-adapter-config")),
    "LoRA": (tensors("base_model.model.h.0.c_attn.lora_A.weight"), ("LoRA",)),
    "kohya LoRA": (tensors("lora_unet_down_0.lora_up.weight"), ("LoRA",)),
    "IA3": (tensors("base_model.model.h.0.c_attn.ia3_l"), ("PEFT adapter",)),
    "AdapterHub prefix": (tensors(PREFIX_TUNINGS), ("AdapterHub", "prefix-tuning")),
    "AdapterHub adapter": (tensors("bert.layer.0.adapters.x.down.weight"), ("AdapterHub",)),
    "OpenPrompt": (
        tensors("decoder_wte.weight", "decoder_control_trans.0.weight"),
        ("OpenPrompt",),
    ),
    "He et al.": (tensors("model.shared.weight", "prompt.control_trans.0.weight"), ("He et al.",)),
    "multitask": (tensors("prompt_embeddings", "prefix_task_cols"), ("multitask", "on one task")),
    "authors": (tensors("wte.weight", "control_trans.0.weight"), ("authors",)),
    "GPT-2": (tensors("transformer.h.0.ln_1.weight", "wte.weight"), ("whole model", "--model")),
    "Llama": (tensors("model.layers.0.self_attn.q_proj.weight"), ("whole model",)),
    "BART": (tensors("model.shared.weight"), ("whole model",)),
    "checkpoint": (tensors("parameters.decoder.w", "optimizer.0.step"), ("unfinished",)),
    "pickle": (pickled("weight"), ("pickle", ".bin", "run code")),
    "old pickle": (pickled("weight", zipped=False), ("pickle",)),
    "pickled LoRA": (pickled("base_model.model.x.lora_A.weight"), ("pickle", "LoRA")),
    "pickled authors": (pickled("control_trans.0.weight"), ("pickle", "authors")),
    "GGUF": (b"GGUF\x03\0\0\0" + bytes(64), ("GGUF",)),
    "LFS": (LFS, ("Git LFS pointer", "git lfs pull")),
    "web page": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", ("web page",)),
    "gzip": (gzip.compress(b"x" * 100), ("gzip", "unpack")),
    "zip": (archive("zip"), ("zip archive", "unpack")),
    "tar": (archive("tar"), ("tar archive",)),
    "NumPy": (arrays(zipped=False), ("NumPy",)),
    "npz": (arrays(zipped=True), ("NumPy",)),
    "adapter config": (b'{\n "peft_type": "LORA"}', ("adapter_config.json", "beside")),
    "model config": (b'{"architectures": ["GPT2LMHeadModel"]}', ("config.json",)),
    "index": (b'{"metadata": {}, "weight_map": {}}', ("sharded",)),
    "JSON": (b'[{"input": "a", "target": "b"}]', ("JSON",)),
}


@pytest.mark.parametrize("case", FILES, ids=str)
def test_a_foreign_file_is_named(case: str, tiny_gpt2: FrozenModel, tmp_path: Path) -> None:
    data, words = FILES[case]
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises((InvalidPrefix, FileTooLarge)) as refused:
        decode(path, tiny_gpt2.spec, tiny_gpt2.dtype, max_length=100)
    for word in (*words, "polyprefix/1"):
        assert word in refused.value.message
    assert len(refused.value.message) < 500
    named, told = looks_like_file(path) or "", looks_like(data[:START_BYTES]) or ""
    assert named.partition(":")[0] == told.partition(":")[0]


def test_a_model_whose_header_is_beyond_every_limit_is_named(
    tiny_gpt2: FrozenModel, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(tensors(*(f"model.layers.{n}.mlp.up_proj.weight" for n in range(3000))))
    with pytest.raises((InvalidPrefix, FileTooLarge), match="whole model"):
        decode(path, tiny_gpt2.spec, tiny_gpt2.dtype, max_length=100)


def test_a_prefix_looks_like_nothing_else(tiny_gpt2: FrozenModel, tiny_bart: FrozenModel) -> None:
    for model in (tiny_gpt2, tiny_bart):
        data = encode(random_prefix(model, 7))
        assert looks_like(data) is None
        assert looks_like(data[:20]) is None
    assert looks_like(b"") is None
    assert looks_like(b"random bytes that say nothing") is None


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), "prefix-tuning"),
        (PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), "prompt-tuning"),
        (LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True), "LoRA"),
    ],
    ids=["prefix", "prompt", "lora"],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT asks transformers by an old name
def test_what_peft_saves_is_named_by_its_config(
    config: PeftConfig, word: str, tiny_gpt2_folder: Path, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2_folder)
    get_peft_model(model, config).save_pretrained(tmp_path)
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        said = looks_like_file(path) or ""
        assert "PEFT" in said or path.is_file()
        assert word in said


def test_push_names_a_foreign_file_without_asking_a_server(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(tensors("prompt_embeddings"))
    nobody = ("--server", "http://127.0.0.1:9")
    for name in (path, tmp_path / "none.safetensors", tmp_path):
        ran = CliRunner().invoke(app, ["prefix", "push", str(name), "--name", "x", *nobody])
        assert ran.exit_code == 1
        assert ran.stderr.startswith("error: ")
        assert name.name in ran.stderr
        assert ("PEFT" in ran.stderr) == (name == path)


@pytest.mark.parametrize(
    ("config", "names", "words"),
    [
        ({"preseqlen": 5}, ["decoder_wte.weight", "decoder_control_trans.0.weight"], "OpenPrompt"),
        ({"preseqlen": 5}, ["m.wte2.weight", "m.control_trans2.0.weight"], "the prefix alone"),
        ({"peft_type": "MULTITASK_PROMPT_TUNING"}, ["prompt_embeddings"], "on one task"),
        ({"peft_type": "LORA"}, ["x.lora_A.weight"], "it changes the model's layers"),
    ],
    ids=["OpenPrompt", "He et al.", "multitask", "LoRA"],
)
def test_push_does_not_send_the_user_to_itself(
    config: dict[str, object], names: list[str], words: str, tmp_path: Path
) -> None:
    start = "adapter_" if "peft_type" in config else ""
    (tmp_path / f"{start}config.json").write_text(json.dumps(config))
    (tmp_path / f"{start}model.safetensors").write_bytes(tensors(*names))
    nobody = ("--server", "http://127.0.0.1:9")
    ran = CliRunner().invoke(app, ["prefix", "push", str(tmp_path), "--name", "x", *nobody])
    assert ran.exit_code == 1
    assert words in ran.stderr
    assert "polyprefix prefix push" not in ran.stderr
    assert "PEFT, AdapterHub, TGIS and the authors' code" in ran.stderr


def test_an_upload_is_named_in_the_reply(tiny_gpt2: FrozenModel, tmp_path: Path) -> None:
    with serving(tiny_gpt2, tmp_path) as server:
        reply = server.push("x", tensors("prompt_embeddings"))
        error = json.loads(reply.text)["error"]
    assert (reply.status_code, error["code"]) == (422, "invalid_prefix")
    assert "unexpected tensor 'prompt_embeddings'" in error["message"]
    assert "PEFT" in error["message"]
