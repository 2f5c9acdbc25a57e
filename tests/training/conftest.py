"""A tiny model that gradients flow through, and pairs to train on."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.datasets.example import Example
from app.evaluation.text_pairs import TokenPair, token_pairs
from app.model.frozen import FrozenModel
from app.model.load import load_model

TEMPLATE = " {input} <|endoftext|>"

EXAMPLES = (
    Example("name : fox | colour : brown", ("the brown fox jumps",), 1),
    Example("name : dog | mood : lazy", ("the lazy dog", "a dog that is lazy"), 2),
    Example("name : cat | place : mat", ("the cat sat on the mat",), 3),
)


@pytest.fixture(scope="session")
def pairs(trainable: FrozenModel) -> list[TokenPair]:
    """The four pairs of `EXAMPLES`."""
    return token_pairs(EXAMPLES, trainable.text, TEMPLATE, room=100, source="examples")


@pytest.fixture(scope="session")
def bart(tiny_bart_folder: Path) -> FrozenModel:
    """The tiny BART with plain layers and its config's dropout of a tenth."""
    return load_model(str(tiny_bart_folder), device="cpu", dtype="float32", packed=False)
