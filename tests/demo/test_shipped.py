"""What is shipped: the demo models and their prefixes, as a user's first request meets them."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.datasets.reader import read_examples
from app.demo.scitldr.sentences import is_whole
from app.evaluation.evaluator import evaluate, running_engine
from app.evaluation.slots import slot_errors
from app.model.frozen import FrozenModel
from app.model.load import load_model
from app.model.packaged.catalog import PACKAGED_MODELS
from app.prefix.codec import decode
from app.prefix.prefix import Prefix
from app.prefix.spec import MODULES
from app.registry.open_registry import open_registry
from app.registry.shipped.import_ import seed
from app.registry.shipped.manifest import ShippedVersion, read_manifest
from app.settings import DEMO_MODEL, SHIPPED_STORE

E2E = Path(__file__).parent / "data" / "restaurants-held-out.jsonl"
"""The held-out inputs of E2E's development split (CC BY-SA 4.0), with all their references."""
UNUSUAL = Path(__file__).parent / "data" / "restaurants-unusual.jsonl"
"""Invented inputs of one to eight slots whose names no training input has."""
ABSTRACTS = Path(__file__).parent / "data" / "scitldr-held-out.jsonl"
"""The first 20 abstracts of SciTLDR's development split (Apache-2.0), with all their summaries."""

DEMO_BART = DEMO_MODEL.parent / "demo-bart"


def newest() -> dict[str, ShippedVersion]:
    """The newest version of every shipped prefix."""
    manifest = read_manifest(SHIPPED_STORE)
    return {name: listed.versions[-1] for name, listed in manifest.prefixes.items()}


def of_demo_models() -> set[str]:
    """The shipped prefixes of models that are part of the project; tests/demo/test_smollm2.py has
    those of the others."""
    return {name for name, version in newest().items() if version.base_model not in PACKAGED_MODELS}


def shipped_for(model: FrozenModel) -> dict[str, Prefix]:
    """The shipped prefixes of one base model, decoded with every check."""
    found = {}
    for name, version in newest().items():
        if version.base_fingerprint == model.spec.fingerprint:
            path = SHIPPED_STORE / "shipped" / f"{version.digest}.safetensors"
            found[name] = decode(path, model.spec, model.dtype, max_length=512)
            assert found[name].digest == version.digest
            assert found[name].metadata.base_fingerprint == model.spec.fingerprint
    return found


@pytest.fixture(scope="module")
def demo() -> FrozenModel:
    return load_model(str(DEMO_MODEL), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def bart() -> FrozenModel:
    return load_model(str(DEMO_BART), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def shipped(demo: FrozenModel) -> dict[str, Prefix]:
    return shipped_for(demo)


@pytest.fixture(scope="module")
def shipped_bart(bart: FrozenModel) -> dict[str, Prefix]:
    return shipped_for(bart)


@pytest.mark.parametrize("folder", [DEMO_MODEL, DEMO_BART], ids=lambda folder: folder.name)
def test_a_demo_model_is_small_enough_for_the_repository(folder: Path) -> None:
    assert sum(file.stat().st_size for file in folder.iterdir()) < 25e6


def test_at_least_four_prefixes_of_different_lengths_fit_the_demo_model(
    shipped: dict[str, Prefix],
) -> None:
    assert "e2e" in shipped
    assert len({prefix.length for prefix in shipped.values()}) >= 4


def test_the_barts_prefixes_are_in_all_three_attentions_and_shift_nothing(
    shipped_bart: dict[str, Prefix],
) -> None:
    assert {"scitldr", "describe"} <= shipped_bart.keys()
    for prefix in shipped_bart.values():
        assert tuple(prefix.modules) == MODULES
        assert prefix.metadata.position_offset == 0
        assert prefix.metadata.input_template == "<s>{input}</s>"


@pytest.mark.parametrize("text", ["A word", " a word", "\n", "x </s> y", "<mask>", "é ✓"])
def test_their_template_gives_what_a_tokenizer_gives(bart: FrozenModel, text: str) -> None:
    assert bart.text.render("<s>{input}</s>", text) == bart.text.encode(text)


def test_every_prefix_belongs_to_one_of_the_demo_models(
    shipped: dict[str, Prefix], shipped_bart: dict[str, Prefix]
) -> None:
    assert not shipped.keys() & shipped_bart.keys()
    assert shipped.keys() | shipped_bart.keys() == of_demo_models()


def test_a_server_imports_the_prefixes_of_its_base_model_alone(
    demo: FrozenModel, bart: FrozenModel, shipped_bart: dict[str, Prefix], tmp_path: Path
) -> None:
    for model in (demo, bart):
        url = f"sqlite:///{tmp_path / model.spec.model_id}.sqlite"
        registry = open_registry(url, SHIPPED_STORE)
        seed(registry, SHIPPED_STORE, base_fingerprint=model.spec.fingerprint)
        listed = {record.name for record in registry.list_prefixes("demo", None, 100).items}
        registry.close()
        assert listed == (
            shipped_bart.keys() if model is bart else of_demo_models() - shipped_bart.keys()
        )


def test_no_file_of_the_shipped_store_is_without_a_name() -> None:
    listed = {
        version.digest
        for prefix in read_manifest(SHIPPED_STORE).prefixes.values()
        for version in prefix.versions
    }
    assert {file.stem for file in (SHIPPED_STORE / "shipped").iterdir()} == listed


def test_the_prefix_e2e_says_every_slot_of_places_that_it_never_saw(
    demo: FrozenModel, shipped: dict[str, Prefix]
) -> None:
    check_descriptions(demo, shipped["e2e"])


def test_the_prefix_e2e_copies_most_names_that_are_unusual(
    demo: FrozenModel, shipped: dict[str, Prefix]
) -> None:
    examples = read_examples(UNUSUAL)
    with running_engine(demo) as engine:
        texts = evaluate(engine, examples, prefix=shipped["e2e"]).texts
    report = slot_errors([example.input for example in examples], texts)
    assert report is not None
    assert report.share_all_right >= 85


def test_the_prefix_describe_says_every_slot_of_places_that_it_never_saw(
    bart: FrozenModel, shipped_bart: dict[str, Prefix]
) -> None:
    check_descriptions(bart, shipped_bart["describe"])


def check_descriptions(model: FrozenModel, prefix: Prefix) -> None:
    """Far better with the prefix than without, and nearly every text says every slot."""
    examples = read_examples(E2E)[::3]
    with running_engine(model) as engine:
        base = evaluate(engine, examples, decoding={"max_tokens": 60})
        tuned = evaluate(engine, examples, prefix=prefix)
    assert tuned.bleu >= max(60, base.bleu + 25)
    report = slot_errors([example.input for example in examples], tuned.texts)
    assert report is not None
    assert report.share_all_right >= 85


def test_the_prefix_scitldr_says_in_a_sentence_what_the_bart_repeats(
    bart: FrozenModel, shipped_bart: dict[str, Prefix]
) -> None:
    examples = read_examples(ABSTRACTS)
    with running_engine(bart) as engine:
        base = evaluate(engine, examples, decoding={"max_tokens": 60})
        tuned = evaluate(engine, examples, prefix=shipped_bart["scitldr"])
    assert tuned.rouge.rouge2 > base.rouge.rouge2
    assert tuned.rouge.rougeL > base.rouge.rougeL + 5
    words = [[len(text.split()) for text in said] for said in (base.texts, tuned.texts)]
    assert sum(words[1]) < 0.8 * sum(words[0])
    assert all(map(is_whole, tuned.texts))
