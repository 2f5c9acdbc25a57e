"""What a benchmark computes: the same for everybody, in the stated bounds."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from app.bench.load import poisson_load, random_prefix, uniform_load
from app.bench.shapes import model_folder
from app.model.frozen import FrozenModel


def test_the_uniform_load_has_rows_of_equal_length_and_prefixes_in_rotation() -> None:
    load = uniform_load(rows=6, prefixes=4, prefix_length=7, prompt=5, new=9)
    assert [item.prefix for item in load.items] == [0, 1, 2, 3, 0, 1]
    assert {len(item.prompt_ids) for item in load.items} == {5}
    assert load.prefix_lengths == (7, 7, 7, 7)
    assert load.num_new == 54


def test_the_poisson_load_stays_within_its_bounds_and_arrives_at_its_rate() -> None:
    load = poisson_load(requests=400, per_second=20, prefixes=16)
    assert all(8 <= len(item.prompt_ids) <= 200 for item in load.items)
    assert all(8 <= item.num_new <= 128 for item in load.items)
    assert all(5 <= length <= 50 for length in load.prefix_lengths)
    arrivals = [item.arrival for item in load.items]
    assert arrivals == sorted(arrivals)
    assert 400 / arrivals[-1] == pytest.approx(20, rel=0.2)


def test_a_load_can_be_repeated() -> None:
    facts = {"requests": 20, "per_second": 5.0, "prefixes": 3}
    assert poisson_load(**facts) == poisson_load(**facts)
    assert poisson_load(**facts) != poisson_load(**facts, seed=1)


def test_every_id_of_the_made_up_model_has_a_text(tmp_path: Path) -> None:
    folder = model_folder("gpt2-shape", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == 50_257
    assert tokenizer.decode([300, 50_255]) == " word300 word50255"
    assert model_folder("gpt2-shape", tmp_path) == folder


def test_a_random_prefix_fits_the_model_and_follows_its_seed(tiny_gpt2: FrozenModel) -> None:
    first, again, other = (random_prefix(tiny_gpt2.spec, 4, seed) for seed in (1, 1, 2))
    assert first.digest == again.digest != other.digest
    assert first.decoder.length == 4
