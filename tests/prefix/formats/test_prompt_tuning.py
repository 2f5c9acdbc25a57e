"""Prompt tuning becomes a prefix that gives the logits of its embeddings before the prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PromptEncoderConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file

from app.errors import BaseModelMismatch, InvalidPrefix, InvalidRequest
from app.model.dense import keys_values_of_embeddings
from app.model.frozen import FrozenModel
from app.prefix.formats.detection import ForeignCheckpoint, ImportTarget, import_checkpoint
from app.prefix.prefix import Prefix
from tests.foreign_models import TOKENS, frozen, our_logits, plain, save_base

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # PEFT asks transformers by an old name
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

LENGTH = 5
FAMILIES = ("gpt2", "llama")
KINDS = {"prompt tuning": PromptTuningConfig, "P-tuning": PromptEncoderConfig}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, tuple[Path, FrozenModel]]:
    root = tmp_path_factory.mktemp("bases")
    folders = {family: save_base(family, root / family) for family in FAMILIES}
    return {family: (folder, frozen(folder)) for family, folder in folders.items()}


@pytest.fixture(scope="module")
def gpt2(bases: Mapping[str, tuple[Path, FrozenModel]]) -> FrozenModel:
    return bases["gpt2"][1]


def read(
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    model: FrozenModel,
    *,
    loaded: bool = True,
) -> Prefix:
    run = partial(keys_values_of_embeddings, model) if loaded else None
    target = ImportTarget(model.spec, model.family, 100, run)
    return import_checkpoint(ForeignCheckpoint(tensors, config), target)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_gives_pefts_own_logits(
    family: str, kind: str, bases: Mapping[str, tuple[Path, FrozenModel]], tmp_path: Path
) -> None:
    base, model = bases[family]
    torch.manual_seed(4)
    config = KINDS[kind](task_type="CAUSAL_LM", num_virtual_tokens=LENGTH)
    theirs = get_peft_model(plain(base), config).eval()
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    prefix = read(tensors, fields, model)
    with torch.inference_mode():
        logits = theirs(input_ids=TOKENS).logits[:, LENGTH:]
    torch.testing.assert_close(our_logits(model, prefix), logits, atol=3e-5, rtol=1e-5)
    assert prefix.metadata.position_offset == LENGTH
    assert prefix.metadata.base_fingerprint == model.spec.fingerprint


@pytest.mark.parametrize("family", FAMILIES)
def test_tgis_embeddings_act_as_if_they_stood_before_the_prompt(
    family: str, bases: Mapping[str, tuple[Path, FrozenModel]]
) -> None:
    base, model = bases[family]
    embeddings = torch.randn(LENGTH, 32, generator=torch.Generator().manual_seed(2))
    prefix = read({"decoder": embeddings}, {}, model)
    hf = plain(base)
    with torch.inference_mode():
        whole = torch.cat([embeddings[None], hf.get_input_embeddings()(TOKENS)], dim=1)
        logits = hf(inputs_embeds=whole).logits[:, LENGTH:]
    torch.testing.assert_close(our_logits(model, prefix), logits, atol=3e-5, rtol=1e-5)


def config(**changes: object) -> dict[str, object]:
    facts = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "num_layers": 2,
        "num_virtual_tokens": LENGTH,
    }
    return {**facts, **changes}


GOOD = {"prompt_embeddings": torch.zeros(LENGTH, 32)}
HOSTILE: Mapping[str, tuple[dict[str, torch.Tensor], dict[str, object], type[Exception], str]] = {
    "width": (
        {"prompt_embeddings": torch.zeros(LENGTH, 64)},
        config(),
        BaseModelMismatch,
        "64 numbers",
    ),
    "NaN": (
        {"prompt_embeddings": torch.full((LENGTH, 32), float("nan"))},
        config(),
        InvalidPrefix,
        "NaN",
    ),
    "dimensions": ({"decoder": torch.zeros(5)}, {}, InvalidPrefix, "shape"),
    "long": ({"decoder": torch.zeros(101, 32)}, {}, InvalidPrefix, "101 positions"),
    "empty": ({"decoder": torch.zeros(0, 32)}, {}, InvalidPrefix, "0 positions"),
    "length": (GOOD, config(num_virtual_tokens=4), InvalidPrefix, "num_virtual_tokens 4"),
    "task": (GOOD, config(task_type="SEQ_2_SEQ_LM"), BaseModelMismatch, "task_type"),
    "layers": (GOOD, config(num_layers=12), BaseModelMismatch, "num_layers 12"),
    "other weights": (GOOD, config(modules_to_save=["x"]), InvalidPrefix, "modules_to_save"),
    "other key": ({**GOOD, "x": torch.zeros(1)}, config(), InvalidPrefix, "not one tensor"),
    "multitask": (GOOD, config(peft_type="MULTITASK_PROMPT_TUNING"), InvalidPrefix, "MULTITASK"),
    "no config": (GOOD, {}, InvalidPrefix, "without its adapter_config.json"),
    "encoder": ({"encoder": torch.zeros(5, 32)}, {}, InvalidPrefix, "encoder-decoder"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_does_not_fit_is_refused(case: str, gpt2: FrozenModel) -> None:
    tensors, fields, error, words = HOSTILE[case]
    with pytest.raises(error, match=words):
        read(tensors, fields, gpt2)


def test_a_model_with_an_encoder_is_refused_with_the_reason(tiny_bart: FrozenModel) -> None:
    with pytest.raises(InvalidPrefix, match="together with each source"):
        read(GOOD, config(task_type="SEQ_2_SEQ_LM", num_layers=3), tiny_bart)


def test_without_the_model_the_message_says_how_to_name_it(gpt2: FrozenModel) -> None:
    with pytest.raises(InvalidRequest, match="--model"):
        read(GOOD, config(), gpt2, loaded=False)
