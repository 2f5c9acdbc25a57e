"""What is shipped: the demo model and its prefixes, as a user's first request meets them."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.model.frozen import FrozenModel
from app.model.load import load_model
from app.prefix.codec import decode
from app.prefix.prefix import Prefix
from app.registry.manifest import read_manifest
from app.settings import DEMO_MODEL, SHIPPED_STORE
from app.training.data import read_examples
from app.training.evaluation import evaluate, running_engine

HELD_OUT = Path(__file__).parent / "data" / "e2e-held-out.jsonl"
"""Every fifth held-out meaning representation of E2E (CC BY-SA 4.0), with all its references."""


@pytest.fixture(scope="module")
def demo() -> FrozenModel:
    return load_model(str(DEMO_MODEL), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def shipped(demo: FrozenModel) -> dict[str, Prefix]:
    """The newest version of every shipped prefix, decoded with every check."""
    found = {}
    for name, listed in read_manifest(SHIPPED_STORE).prefixes.items():
        version = listed.versions[-1]
        path = SHIPPED_STORE / "shipped" / f"{version.digest}.safetensors"
        found[name] = decode(path, demo.spec, demo.dtype, max_length=512)
        assert found[name].digest == version.digest
        assert found[name].metadata.base_fingerprint == demo.spec.fingerprint
    return found


def test_the_demo_model_is_small_enough_for_the_repository() -> None:
    assert sum(file.stat().st_size for file in DEMO_MODEL.iterdir()) < 25e6


def test_at_least_four_prefixes_of_different_lengths_fit_the_demo_model(
    shipped: dict[str, Prefix],
) -> None:
    assert "e2e" in shipped
    assert len({prefix.length for prefix in shipped.values()}) >= 4


def test_no_file_of_the_shipped_store_is_without_a_name() -> None:
    listed = {
        version.digest
        for prefix in read_manifest(SHIPPED_STORE).prefixes.values()
        for version in prefix.versions
    }
    assert {file.stem for file in (SHIPPED_STORE / "shipped").iterdir()} == listed


def test_the_prefix_e2e_describes_what_the_base_model_cannot(
    demo: FrozenModel, shipped: dict[str, Prefix]
) -> None:
    examples = read_examples(HELD_OUT)
    with running_engine(demo) as engine:
        base = evaluate(engine, examples, decoding={"max_tokens": 60})
        tuned = evaluate(engine, examples, prefix=shipped["e2e"])
    assert tuned.bleu > base.bleu + 25
    told = [
        example.input.split(" | ")[0].removeprefix("name : ") in text
        for example, text in zip(examples, tuned.texts, strict=True)
    ]
    assert sum(told) >= 0.8 * len(told), "the prefix forgets the names"
