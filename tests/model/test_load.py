"""Loading: devices and dtypes that are asked for, what a model is called, errors that say what."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.errors import UnsupportedModel
from app.model import load as load_module
from app.model.load import load_model, resolve_device, resolve_dtype
from tests.tiny import CONTEXT, VOCABULARY


def test_auto_takes_cuda_only_where_torch_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda", 1)


def test_cuda_without_cuda_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnsupportedModel, match="'cuda' was asked for"):
        resolve_device("cuda")


def test_a_device_that_does_not_exist_is_named() -> None:
    with pytest.raises(UnsupportedModel, match="abacus"):
        resolve_device("abacus")


def test_a_dtype_that_is_not_served_is_named() -> None:
    with pytest.raises(UnsupportedModel, match="'float16'.*bfloat16"):
        resolve_dtype("float16", torch.device("cpu"))


def test_auto_dtype_is_bfloat16_only_where_the_hardware_multiplies_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(load_module, "_cpu_multiplies_bfloat16", lambda: False)
    assert resolve_dtype("auto", cpu) == torch.float32
    monkeypatch.setattr(load_module, "_cpu_multiplies_bfloat16", lambda: True)
    assert resolve_dtype("auto", cpu) == torch.bfloat16
    assert resolve_dtype("float32", cpu) == torch.float32
    for supported, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda answer=supported: answer)
        assert resolve_dtype("auto", torch.device("cuda")) == expected


def test_the_model_is_frozen_in_eval_mode_and_has_the_dtype_asked_for(
    tiny_gpt2_folder: Path,
) -> None:
    model = load_model(str(tiny_gpt2_folder), device="cpu", dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    assert not model.hf.training
    assert all(not parameter.requires_grad for parameter in model.hf.parameters())
    assert {parameter.dtype for parameter in model.hf.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(("family", "kv_heads"), [("gpt2", 4), ("llama", 2), ("qwen2", 2)])
def test_the_spec_says_what_prefixes_must_look_like(
    model_folders: dict[str, Path], family: str, kv_heads: int
) -> None:
    model = load_model(str(model_folders[family]), device="cpu", dtype="float32")
    shape = model.spec.decoder
    assert (shape.layers, shape.kv_heads, shape.head_dim) == (2, kv_heads, 8)
    assert model.spec.context_limit == CONTEXT
    assert model.text.vocab_size == VOCABULARY
    assert model.text.eos_token_ids == {0}
    assert model.num_heads == 4


def test_a_model_is_called_by_the_name_it_is_given_or_by_its_folder_never_by_a_path(
    tiny_gpt2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_gpt2_folder)
    assert load_model(".", device="cpu").spec.model_id == "tiny-gpt2"
    named = load_model(str(tiny_gpt2_folder) + "/", device="cpu", served_name="mine")
    assert named.spec.model_id == "mine"


@pytest.mark.parametrize("name", ["no-such/model", "/no/such/folder", "not a name"])
def test_a_model_that_cannot_be_found_is_named_in_the_error(name: str) -> None:
    with pytest.raises(UnsupportedModel, match=name):
        load_model(name, device="cpu")


@pytest.mark.parametrize(
    "missing", ["model.safetensors", ("tokenizer.json", "tokenizer_config.json"), "config.json"]
)
def test_a_folder_that_lacks_a_part_is_refused_by_name(
    tiny_gpt2_folder: Path, tmp_path: Path, missing: str | tuple[str, ...]
) -> None:
    folder = tmp_path / "half"
    shutil.copytree(tiny_gpt2_folder, folder)
    for name in [missing] if isinstance(missing, str) else missing:
        (folder / name).unlink()
    with pytest.raises(UnsupportedModel, match="half"):
        load_model(str(folder), device="cpu")


def test_weights_that_are_cut_short_are_refused_by_the_name_of_the_folder(
    tiny_gpt2_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(tiny_gpt2_folder, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(UnsupportedModel, match="cut"):
        load_model(str(folder), device="cpu")


def test_weights_that_lack_a_tensor_are_refused_instead_of_drawn_at_random(
    tiny_gpt2_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "holes"
    shutil.copytree(tiny_gpt2_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("transformer.h.1.attn.c_attn.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModel, match=r"h\.1\.attn\.c_attn\.weight"):
        load_model(str(folder), device="cpu")


def test_pickled_weights_are_never_read(tiny_gpt2_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_gpt2_folder, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedModel, match="pickled"):
        load_model(str(folder), device="cpu")


def test_code_that_comes_with_a_model_is_never_run(tiny_gpt2_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "remote"
    shutil.copytree(tiny_gpt2_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UnsupportedModel, match="remote"):
        load_model(str(folder), device="cpu")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({"eos_token_id": [0, 5]}, None, {0, 5}),
        ({"eos_token_id": 7}, {"eos_token_id": [0, 295]}, {0, 295}),
        ({"eos_token_id": 7}, {"eos_token_id": 9}, {9}),
        ({"eos_token_id": [3, 7]}, {"bos_token_id": 0}, {3, 7}),
        ({"eos_token_id": 50256}, {"eos_token_id": [50256, 4]}, {4}),
        ({"eos_token_id": 50256}, {"eos_token_id": 50256}, {0}),
        ({"eos_token_id": None}, {}, {0}),
    ],
)
def test_a_reply_is_ended_by_what_the_generation_config_names(
    config: dict[str, object],
    generation: dict[str, object] | None,
    expected: set[int],
    tiny_gpt2_folder: Path,
    tmp_path: Path,
) -> None:
    folder = copied(tiny_gpt2_folder, tmp_path, config, generation)
    assert load_model(str(folder), device="cpu").text.eos_token_ids == expected


def copied(
    folder: Path,
    place: Path,
    config: dict[str, object],
    generation: dict[str, object] | None,
) -> Path:
    """A copy of a model's folder with other fields in its config, and this generation config."""
    copy = place / "copy"
    shutil.copytree(folder, copy)
    said = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(said | config))
    (copy / "generation_config.json").unlink()
    if generation is not None:
        (copy / "generation_config.json").write_text(json.dumps(generation))
    return copy


def test_ids_that_the_model_has_not_are_named_at_load(
    tiny_gpt2_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copied(tiny_gpt2_folder, tmp_path, {}, {"eos_token_id": [50256, 0]})
    assert load_model(str(folder), device="cpu").text.eos_token_ids == {0}
    assert "eos_token_id names 50256" in caplog.text


@pytest.mark.parametrize(
    "name", ["decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id", "pad_token_id"]
)
def test_a_token_outside_the_vocabulary_that_a_bart_needs_is_refused_by_name(
    name: str, tiny_bart_folder: Path, tmp_path: Path
) -> None:
    said = {name: VOCABULARY, "decoder_start_token_id": 2} | {name: VOCABULARY}
    folder = copied(tiny_bart_folder, tmp_path, said, None)
    with pytest.raises(UnsupportedModel, match=f"its {name} is {VOCABULARY}, outside"):
        load_model(str(folder), device="cpu")


def test_what_is_taken_over_of_a_generation_config_and_what_is_not_is_said(
    tiny_gpt2_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = {
        "eos_token_id": 0,
        "min_new_tokens": 3,
        "no_repeat_ngram_size": 2,
        "num_beams": 4,
        "temperature": 0.6,
        "do_sample": True,
    }
    folder = copied(tiny_gpt2_folder, tmp_path, {}, said)
    with caplog.at_level("INFO"):
        model = load_model(str(folder), device="cpu")
    assert model.min_tokens(5) == 3
    assert model.generation.decoding == {"no_repeat_ngram_size": 2}
    assert model.generation.left_out == {"num_beams": 4, "temperature": 0.6, "do_sample": True}
    line = next(text for text in caplog.messages if "generation config" in text)
    taken, left = line.split("not taken over")
    assert all(part in taken for part in ("min_new_tokens 3", "no_repeat_ngram_size 2"))
    assert all(part in left for part in ("num_beams 4", "temperature 0.6"))
