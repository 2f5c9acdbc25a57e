"""The demo BART: tokenizer, batches of pairs, it learns, a run resumes, the export loads."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BartForConditionalGeneration

from app.demo.corpus import Corpus
from app.demo.exchanges import Exchange, Exchanges
from app.demo.packing import IGNORED
from app.demo.pairing import PairBatch, Pairer
from app.demo.pretrain_bart import (
    BLOCKS,
    BartRecipe,
    Denoising,
    export,
    new_model,
    summed_loss,
    take_vectors,
)
from app.demo.records import read_sources
from app.demo.run import PretrainingRun, Schedule
from app.demo.tokenizer import BART_SPECIALS, bart_tokenizer, save_bart_tokenizer, train_tokenizer

TINY = BartRecipe(
    width=16,
    layers=2,
    heads=2,
    positions=96,
    longest=64,
    step_tokens=512,
    step_parts=3,
    schedule=Schedule(warmup_steps=2),
)


@pytest.fixture(scope="module")
def gpt2_tokenizer(data_folder: Path) -> Tokenizer:
    corpus = Corpus(read_sources(data_folder))
    texts = [corpus.document(number).text for number in range(100)]
    return train_tokenizer(texts, vocab_size=400)


@pytest.fixture(scope="module")
def tokenizer(gpt2_tokenizer: Tokenizer) -> Tokenizer:
    return bart_tokenizer(gpt2_tokenizer)


@pytest.fixture(scope="module")
def pairer(data_folder: Path, tokenizer: Tokenizer) -> Pairer:
    exchanges = Exchanges(read_sources(data_folder))
    return Pairer(exchanges, tokenizer, tokens=512, parts=3, limit=TINY.longest)


def _model(tokenizer: Tokenizer, seed: int = 1) -> BartForConditionalGeneration:
    return new_model(replace(TINY, seed=seed), tokenizer.get_vocab_size())


def test_the_tokenizer_has_barts_specials_in_barts_places(
    tokenizer: Tokenizer, gpt2_tokenizer: Tokenizer
) -> None:
    assert [tokenizer.token_to_id(token) for token in BART_SPECIALS] == [0, 1, 2, 3]
    assert tokenizer.token_to_id("<mask>") == tokenizer.get_vocab_size() - 1
    assert tokenizer.get_vocab_size() == gpt2_tokenizer.get_vocab_size() + 4
    assert tokenizer.token_to_id("<|endoftext|>") is None


def test_a_text_is_framed_and_split_as_the_gpt2_splits_it(
    tokenizer: Tokenizer, gpt2_tokenizer: Tokenizer
) -> None:
    encoded = tokenizer.encode("Alan Bean flew <mask> Apollo.")
    assert (encoded.tokens[0], encoded.tokens[-1]) == ("<s>", "</s>")
    assert tokenizer.token_to_id("<mask>") in encoded.ids
    plain = tokenizer.encode("Alan Bean", add_special_tokens=False)
    assert plain.tokens == gpt2_tokenizer.encode(" Alan Bean").tokens
    assert tokenizer.decode(plain.ids) == " Alan Bean"


def test_a_steps_batches_depend_on_its_number_alone(pairer: Pairer) -> None:
    first, again, other = pairer.step(2), pairer.step(2), pairer.step(3)
    assert len(first) > 1
    assert all(torch.equal(a.source, b.source) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(a.labels, b.labels) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0].source, other[0].source)


def test_a_step_is_of_the_asked_size_and_within_the_limit(pairer: Pairer) -> None:
    for number in range(4):
        batches = pairer.step(number)
        real = sum(int(batch.attended.sum() + (batch.labels != IGNORED).sum()) for batch in batches)
        assert 512 - 2 * TINY.longest < real <= 512
        assert all(batch.source.shape[1] <= TINY.longest for batch in batches)
        assert all(batch.labels.shape[1] <= TINY.longest for batch in batches)


def test_the_decoder_reads_the_labels_one_late(pairer: Pairer) -> None:
    for batch in pairer.step(1):
        assert (batch.decoder_input[:, 0] == 2).all()
        assert (batch.labels[:, 0] == 0).all()
        counted = batch.labels[:, :-1] != IGNORED
        counted &= batch.labels[:, 1:] != IGNORED
        assert torch.equal(batch.decoder_input[:, 1:][counted], batch.labels[:, :-1][counted])


def test_only_infilling_hides_spans(pairer: Pairer, tokenizer: Tokenizer) -> None:
    text = "Alan Bean flew on Apollo 12 and Alan Bean was a test pilot of that."
    mask = tokenizer.token_to_id("<mask>")
    for restore in (True, False):
        source, target = pairer.encode(Exchange(text, text, restore=restore), random.Random(0))
        assert (mask in source) is restore
        assert (source == target) is not restore
        assert target[0] == 0
        assert target[-1] == 2


def test_padding_does_not_change_the_losses(pairer: Pairer, tokenizer: Tokenizer) -> None:
    model = _model(tokenizer).eval()
    batch = pairer.step(0)[-1]
    whole = summed_loss(model, batch).item()
    rows = [summed_loss(model, _row(batch, row)).item() for row in range(len(batch.source))]
    assert whole == pytest.approx(sum(rows), rel=1e-2)


def _row(batch: PairBatch, row: int) -> PairBatch:
    wide, long = int(batch.attended[row].sum()), int((batch.labels[row] != IGNORED).sum())
    one = slice(row, row + 1)
    return PairBatch(
        batch.source[one, :wide],
        batch.attended[one, :wide],
        batch.decoder_input[one, :long],
        batch.labels[one, :long],
    )


def test_the_gpt2s_vectors_stand_for_the_same_tokens(tokenizer: Tokenizer) -> None:
    vectors = torch.randn(400, TINY.width, generator=torch.Generator().manual_seed(0)) + 3
    model = _model(tokenizer)
    take_vectors(model, vectors)
    own = vectors[1:] - vectors[1:].mean(dim=0)
    started = model.model.shared.weight[len(BART_SPECIALS) : -1].detach()
    torch.testing.assert_close(started / started.std(), own / own.std())
    assert started.std().item() == pytest.approx(0.04, rel=1e-3)


def test_repeating_a_step_lowers_its_loss(
    data_folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    class Same(Denoising):
        def backward(self, step: int) -> tuple[float, int]:
            return super().backward(0 * step)

    exchanges = Exchanges(read_sources(data_folder))
    few = Pairer(exchanges, tokenizer, tokens=96, parts=1, limit=TINY.longest)
    objective = Same(_model(tokenizer), few)
    before, _ = objective.backward(0)
    objective.model.zero_grad()
    PretrainingRun(tmp_path, objective, TINY.schedule, blocks=BLOCKS).train(1000.0, max_steps=30)
    after, _ = objective.backward(0)
    assert after < 0.7 * before


def test_an_interrupted_run_goes_on_with_the_same_batches_and_state(
    pairer: Pairer, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    def new_run(folder: Path, seed: int) -> PretrainingRun:
        objective = Denoising(_model(tokenizer, seed), pairer)
        return PretrainingRun(folder, objective, TINY.schedule, blocks=BLOCKS)

    run = new_run(tmp_path, 1)
    run.train(1000.0, max_steps=3)
    resumed = new_run(tmp_path, 2)
    assert resumed.resume()
    assert resumed.progress == run.progress
    assert resumed.progress.step == 3
    assert resumed.objective.validate() == run.objective.validate()
    for one in (run, resumed):
        one.train(1000.0, max_steps=5)
    # The rate follows the clock, so that two runs differ in their last digits.
    assert resumed.objective.validate() == pytest.approx(run.objective.validate(), rel=1e-4)


def test_the_export_is_a_bart_that_transformers_loads(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_bart_tokenizer(tokenizer, tmp_path, max_length=TINY.positions)
    export(_model(tokenizer), tmp_path)
    model = BartForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    config = model.generation_config
    assert (config.decoder_start_token_id, config.forced_eos_token_id) == (2, 2)
    assert config.forced_bos_token_id is None
    assert (loaded.bos_token_id, loaded.pad_token_id, loaded.eos_token_id) == (0, 1, 2)
    inputs = loaded("Alan Bean flew.", return_tensors="pt")
    made = model.generate(inputs.input_ids, max_new_tokens=4, do_sample=False)
    assert made[0, 0] == 2
    assert made.shape[1] == 5
    weights = (tmp_path / "model.safetensors").stat().st_size
    assert weights < 2.2 * sum(parameter.numel() for parameter in model.parameters()) + 10_000
