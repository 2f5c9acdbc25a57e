"""PEFT's prefix-tuning and CARTRIDGE adapters give PEFT's own logits, both ways."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from peft import CartridgeConfig, PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save, save_file

from app.errors import BaseModelMismatch, FileTooLarge, InvalidPrefix, InvalidRequest
from app.model.frozen import FrozenModel
from app.prefix.codec import max_file_bytes
from app.prefix.formats.detection import ImportTarget, import_checkpoint, read_upload
from app.prefix.formats.peft import export_peft, parse_config
from app.prefix.prefix import KeyValues, Prefix, PrefixMetadata
from tests.foreign_models import (
    frozen,
    our_logits,
    plain,
    save_base,
    their_logits,
)
from tests.tiny import random_prefix

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # PEFT asks transformers by an old name
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

LENGTH = 5
FAMILIES = ("gpt2", "llama", "bart-2", "bart-3")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, tuple[Path, FrozenModel]]:
    """Each base model: its folder, and as the server loads it."""
    root = tmp_path_factory.mktemp("bases")
    folders = {family: save_base(family, root / family) for family in FAMILIES}
    return {family: (folder, frozen(folder)) for family, folder in folders.items()}


@pytest.fixture(scope="module")
def gpt2(bases: Mapping[str, tuple[Path, FrozenModel]]) -> FrozenModel:
    return bases["gpt2"][1]


def adapter(base: Path, folder: Path, *, pair: bool, kind: str = "plain") -> torch.nn.Module:
    """A random adapter of PEFT's, saved to `folder`: `plain`, `projected` or `cartridge`."""
    torch.manual_seed(3)
    facts = {
        "task_type": "SEQ_2_SEQ_LM" if pair else "CAUSAL_LM",
        "num_virtual_tokens": LENGTH,
    }
    if kind == "cartridge":
        config = CartridgeConfig(**facts, num_frozen_tokens=1)
    else:
        config = PrefixTuningConfig(**facts, prefix_projection=kind == "projected")
    model = get_peft_model(plain(base), config).eval()
    model.save_pretrained(folder)
    return model


def import_folder(folder: Path, model: FrozenModel, max_length: int = 100) -> Prefix:
    text = (folder / "adapter_config.json").read_text()
    limit = max_file_bytes(model.spec, max_length)
    checkpoint = read_upload(folder / "adapter_model.safetensors", text, limit)
    return import_checkpoint(checkpoint, ImportTarget(model.spec, model.family, max_length))


def changed(folder: Path, **fields: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize("kind", ["plain", "projected", "cartridge"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_gives_pefts_own_logits(
    family: str, kind: str, bases: Mapping[str, tuple[Path, FrozenModel]], tmp_path: Path
) -> None:
    base, model = bases[family]
    pair = family.startswith("bart")
    theirs = their_logits(adapter(base, tmp_path, pair=pair, kind=kind), pair=pair)
    prefix = import_folder(tmp_path, model)
    torch.testing.assert_close(our_logits(model, prefix), theirs, atol=2e-5, rtol=1e-5)
    assert (prefix.length, prefix.metadata.position_offset) == (LENGTH, LENGTH)
    assert set(prefix.modules) == {"decoder"}
    assert prefix.metadata.base_model == family
    assert prefix.metadata.provenance["imported_from"] == "PEFT"
    without = Prefix(prefix.modules, PrefixMetadata(position_offset=0))
    assert (our_logits(model, without) - theirs).abs().max() > 1e-3  # positions matter


@pytest.mark.parametrize("family", ["gpt2", "llama", "bart-3"])
def test_peft_loads_what_is_exported_with_equal_logits(
    family: str, bases: Mapping[str, tuple[Path, FrozenModel]], tmp_path: Path
) -> None:
    base, model = bases[family]
    pair = family.startswith("bart")
    prefix = random_prefix(model, LENGTH)
    for name, data in export_peft(prefix, encoder_decoder=pair, base_model=str(base)).items():
        (tmp_path / name).write_bytes(data)
    theirs = their_logits(PeftModel.from_pretrained(plain(base), tmp_path).eval(), pair=pair)
    torch.testing.assert_close(our_logits(model, prefix), theirs, atol=2e-5, rtol=1e-5)
    again = import_folder(tmp_path, model)
    assert torch.equal(again.decoder.keys, prefix.decoder.keys)
    assert torch.equal(again.decoder.values, prefix.decoder.values)


def test_an_even_bart_is_exported_if_its_halves_share_their_prefix(
    bases: Mapping[str, tuple[Path, FrozenModel]], tmp_path: Path
) -> None:
    base, model = bases["bart-2"]
    prefix = random_prefix(model, LENGTH)
    with pytest.raises(InvalidRequest, match="share their prefix"):
        export_peft(prefix, encoder_decoder=True)
    keys, values = (
        part[:1].repeat(2, 1, 1, 1) for part in (prefix.decoder.keys, prefix.decoder.values)
    )
    shared = Prefix({"decoder": KeyValues(keys, values)}, prefix.metadata)
    for name, data in export_peft(shared, encoder_decoder=True).items():
        (tmp_path / name).write_bytes(data)
    theirs = their_logits(PeftModel.from_pretrained(plain(base), tmp_path).eval(), pair=True)
    torch.testing.assert_close(our_logits(model, shared), theirs, atol=2e-5, rtol=1e-5)


def test_what_peft_cannot_express_is_not_exported(
    gpt2: FrozenModel, bases: Mapping[str, tuple[Path, FrozenModel]]
) -> None:
    with pytest.raises(InvalidRequest, match="start at 5"):
        export_peft(random_prefix(gpt2, 5, position_offset=0), encoder_decoder=False)
    three = random_prefix(bases["bart-3"][1], 5, encoder=4, cross=3)
    with pytest.raises(InvalidRequest, match="cross and encoder attention"):
        export_peft(three, encoder_decoder=True)


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"peft_type": "LORA"}, InvalidPrefix, "LoRA"),
        ({"peft_type": "PROMPT_TUNING"}, InvalidRequest, "this is prompt tuning"),
        ({"peft_type": None}, InvalidPrefix, "PEFT adapter"),
        ({"modules_to_save": ["lm_head"]}, InvalidPrefix, "modules_to_save"),
        ({"task_type": "SEQ_CLS"}, BaseModelMismatch, "task_type 'SEQ_CLS'"),
        ({"task_type": "SEQ_2_SEQ_LM"}, BaseModelMismatch, "task_type"),
        ({"num_layers": 12}, BaseModelMismatch, "num_layers 12"),
        ({"num_layers": True}, BaseModelMismatch, "num_layers True"),
        ({"num_attention_heads": 2}, BaseModelMismatch, "num_attention_heads 2"),
        ({"token_dim": 64}, BaseModelMismatch, "token_dim 64"),
        ({"num_transformer_submodules": 2}, BaseModelMismatch, "submodules"),
        ({"num_virtual_tokens": 4}, InvalidPrefix, "shape"),
        ({"num_virtual_tokens": "5"}, InvalidPrefix, "shape"),
    ],
    ids=str,
)
def test_a_config_that_does_not_fit_is_refused(
    fields: dict[str, object],
    error: type[Exception],
    words: str,
    gpt2: FrozenModel,
    tmp_path: Path,
) -> None:
    write_adapter(tmp_path, torch.randn(LENGTH, 128))
    changed(tmp_path, **fields)
    with pytest.raises(error, match=words):
        import_folder(tmp_path, gpt2)


def write_adapter(folder: Path, rows: torch.Tensor, **others: torch.Tensor) -> None:
    """An adapter for the tiny GPT-2 with these tensors."""
    prefix = Prefix(
        {"decoder": KeyValues(torch.zeros(2, 4, LENGTH, 8), torch.zeros(2, 4, LENGTH, 8))},
        PrefixMetadata(position_offset=LENGTH),
    )
    (folder / "adapter_config.json").write_bytes(
        export_peft(prefix, encoder_decoder=False)["adapter_config.json"]
    )
    save_file({"prompt_embeddings": rows, **others}, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (torch.randn(LENGTH, 64), "shape"),
        (torch.randn(LENGTH, 2, 64), "shape"),
        (torch.full((LENGTH, 128), float("nan")), "NaN"),
        (torch.full((LENGTH, 128), float("inf")), "infinite"),
        (torch.zeros(LENGTH, 128, dtype=torch.int32), "dtype int32"),
        (torch.zeros(LENGTH, 128, dtype=torch.float64), "dtype float64"),
    ],
    ids=["width", "dimensions", "NaN", "infinite", "integers", "doubles"],
)
def test_wrong_tensors_are_refused(
    rows: torch.Tensor, words: str, gpt2: FrozenModel, tmp_path: Path
) -> None:
    write_adapter(tmp_path, rows)
    with pytest.raises(InvalidPrefix, match=words):
        import_folder(tmp_path, gpt2)


def test_other_keys_and_a_missing_tensor_are_refused(gpt2: FrozenModel, tmp_path: Path) -> None:
    write_adapter(tmp_path, torch.randn(LENGTH, 128), extra=torch.zeros(1))
    with pytest.raises(InvalidPrefix, match="also holds 'extra'"):
        import_folder(tmp_path, gpt2)
    save_file({}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InvalidPrefix, match="no prompt_embeddings"):
        import_folder(tmp_path, gpt2)


def test_more_positions_than_the_limit_are_refused(gpt2: FrozenModel, tmp_path: Path) -> None:
    write_adapter(tmp_path, torch.randn(LENGTH, 128))
    with pytest.raises(InvalidPrefix, match="5 positions; 1 to 4"):
        import_folder(tmp_path, gpt2, max_length=4)
    write_adapter(tmp_path, torch.randn(3000, 128))
    changed(tmp_path, num_virtual_tokens=3000)
    with pytest.raises(FileTooLarge, match="at most"):
        import_folder(tmp_path, gpt2)


def test_a_model_that_peft_cannot_run_is_refused(tiny_bart: FrozenModel, tmp_path: Path) -> None:
    write_adapter(tmp_path, torch.randn(LENGTH, 128))
    changed(tmp_path, task_type="SEQ_2_SEQ_LM", num_transformer_submodules=2)
    with pytest.raises(InvalidPrefix, match="differ in their layers"):
        import_folder(tmp_path, tiny_bart)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"peft_type": "LORA", "peft_type": "PREFIX_TUNING"}', "twice"),
        ('{"a": NaN}', "no number"),
        ("[" * 5000, "deep|JSON"),
        (" " * 20_000, "longer than"),
    ],
    ids=["empty", "list", "twice", "NaN", "deep", "long"],
)
def test_a_config_that_is_no_plain_object_is_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidPrefix, match=words):
        parse_config(text)


def test_a_path_in_a_config_is_not_kept(gpt2: FrozenModel, tmp_path: Path) -> None:
    write_adapter(tmp_path, torch.randn(LENGTH, 128))
    for given, kept in (
        ("/home/anna/models/gpt2", "gpt2"),
        ("openai-community/gpt2", "openai-community/gpt2"),
        ("../gpt2/", "gpt2"),
        (7, None),
        ("", None),
    ):
        changed(tmp_path, base_model_name_or_path=given)
        assert import_folder(tmp_path, gpt2).metadata.base_model == kept


def test_half_precision_is_kept(gpt2: FrozenModel, tmp_path: Path) -> None:
    write_adapter(tmp_path, torch.randn(LENGTH, 128).half())
    prefix = import_folder(tmp_path, gpt2)
    assert prefix.decoder.keys.dtype == torch.float16
    exported = export_peft(prefix, encoder_decoder=False)["adapter_model.safetensors"]
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert exported == save(stored, metadata={"format": "pt"})
