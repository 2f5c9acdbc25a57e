"""The fingerprint: equal for the same model however it is served, different for another one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from app.model.load import load_model


def fingerprint(folder: Path, **options: object) -> str:
    return load_model(str(folder), device="cpu", **options).spec.fingerprint


def copy_of(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def test_it_does_not_depend_on_dtype_packing_or_name(tiny_gpt2_folder: Path) -> None:
    expected = fingerprint(tiny_gpt2_folder, dtype="float32")
    assert len(expected) == 64
    assert fingerprint(tiny_gpt2_folder, dtype="bfloat16") == expected
    assert fingerprint(tiny_gpt2_folder, packed=False) == expected
    assert fingerprint(tiny_gpt2_folder, served_name="another") == expected


def test_it_does_not_depend_on_where_and_how_the_weights_are_stored(
    tiny_gpt2_folder: Path, tmp_path: Path
) -> None:
    expected = fingerprint(tiny_gpt2_folder)
    assert fingerprint(copy_of(tiny_gpt2_folder, tmp_path / "moved")) == expected
    split = copy_of(tiny_gpt2_folder, tmp_path / "split")
    (split / "model.safetensors").unlink()
    plain = AutoModelForCausalLM.from_pretrained(tiny_gpt2_folder)
    plain.save_pretrained(split, max_shard_size="40KB")
    assert len(list(split.glob("model-*.safetensors"))) > 1
    assert fingerprint(split) == expected


@pytest.mark.parametrize(
    "name", ["transformer.wte.weight", "transformer.h.1.mlp.c_proj.bias", "transformer.ln_f.bias"]
)
def test_it_changes_when_one_number_of_one_weight_changes(
    tiny_gpt2_folder: Path, tmp_path: Path, name: str
) -> None:
    folder = copy_of(tiny_gpt2_folder, tmp_path / "changed")
    tensors = load_file(folder / "model.safetensors")
    flat = tensors[name].view(-1)
    flat[-1] = torch.nextafter(flat[-1], torch.tensor(10.0))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(folder) != fingerprint(tiny_gpt2_folder)


@pytest.mark.parametrize(
    ("family", "field", "value"),
    [
        ("gpt2", "activation_function", "relu"),
        ("gpt2", "layer_norm_epsilon", 1e-3),
        ("gpt2", "scale_attn_by_inverse_layer_idx", True),
        ("llama", "rope_parameters", {"rope_type": "default", "rope_theta": 5000.0}),
        ("llama", "rms_norm_eps", 1e-3),
        ("llama", "hidden_act", "gelu"),
    ],
)
def test_it_changes_with_a_config_field_that_changes_what_the_weights_compute(
    model_folders: dict[str, Path], tmp_path: Path, family: str, field: str, value: object
) -> None:
    folder = copy_of(model_folders[family], tmp_path / "changed")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, field: value}))
    assert fingerprint(folder) != fingerprint(model_folders[family])


def test_it_does_not_change_with_a_config_field_that_does_not_matter(
    tiny_gpt2_folder: Path, tmp_path: Path
) -> None:
    folder = copy_of(tiny_gpt2_folder, tmp_path / "same")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_version": "0"}))
    assert fingerprint(folder) == fingerprint(tiny_gpt2_folder)
