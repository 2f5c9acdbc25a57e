"""The demo GPT-2: batches keep documents apart, a run resumes, the export loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from app.demo.corpus import END, Corpus
from app.demo.optimizer import Muon, orthogonalise
from app.demo.packing import IGNORED, Packer
from app.demo.pretrain import BLOCKS, Gpt2Recipe, Prediction, batch_loss, export, new_model
from app.demo.records import read_sources
from app.demo.run import PretrainingRun, Schedule, lr_share
from app.demo.tokenizer import save_tokenizer, train_tokenizer
from app.model.load import load_model

TINY = Gpt2Recipe(
    vocab_size=400,
    width=16,
    layers=2,
    heads=2,
    positions=128,
    batch_tokens=256,
    schedule=Schedule(warmup_steps=2),
)


@pytest.fixture(scope="module")
def corpus(data_folder: Path) -> Corpus:
    return Corpus(read_sources(data_folder))


@pytest.fixture(scope="module")
def tokenizer(corpus: Corpus) -> Tokenizer:
    texts = [corpus.document(number).text.replace(END, " ") for number in range(100)]
    return train_tokenizer(texts, vocab_size=TINY.vocab_size)


@pytest.fixture
def packer(corpus: Corpus, tokenizer: Tokenizer) -> Packer:
    return Packer(corpus, tokenizer, tokens=TINY.batch_tokens, limit=TINY.positions)


def test_a_batch_depends_on_its_number_alone(packer: Packer) -> None:
    first, again, other = packer.batch(2), packer.batch(2), packer.batch(3)
    assert torch.equal(first.input_ids, again.input_ids)
    assert torch.equal(first.labels, again.labels)
    assert first.input_ids.shape == (4, 64)
    assert other.input_ids.shape == (2, 128)


def test_documents_in_a_row_do_not_see_each_other(packer: Packer) -> None:
    batch = packer.batch(3)
    model = new_model(TINY, 0).eval()
    before = model(
        input_ids=batch.input_ids, attention_mask=batch.mask, position_ids=batch.positions
    ).logits
    blind = ~batch.mask[:, 0, :, 0]  # rows whose token does not see the row's first
    row, second = next(
        (r, int(places.nonzero()[0])) for r, places in enumerate(blind) if any(places)
    )
    changed = batch.input_ids.clone()
    changed[row, :second] = 5
    after = model(input_ids=changed, attention_mask=batch.mask, position_ids=batch.positions).logits
    torch.testing.assert_close(before[row, second:], after[row, second:])
    assert not torch.allclose(before[row, :second], after[row, :second])


def test_labels_are_the_next_tokens_of_the_same_document(packer: Packer) -> None:
    batch = packer.batch(1)
    for row, place in (batch.labels != IGNORED).nonzero().tolist():
        assert batch.labels[row, place] == batch.input_ids[row, place + 1]
        assert batch.mask[row, 0, place + 1, place]
        assert batch.positions[row, place + 1] == batch.positions[row, place] + 1
    assert int(batch.positions.max()) < TINY.positions


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrix))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_muon_lowers_a_loss() -> None:
    goal = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    weight = torch.nn.Parameter(torch.zeros(6, 9))
    optimizer = Muon([weight], lr=0.1)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (weight - goal).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_the_rate_warms_up_and_ends_low() -> None:
    schedule = Schedule(warmup_steps=2)
    assert lr_share(0, 0.0, schedule) == 0.5
    assert lr_share(5, 0.0, schedule) == 1.0
    assert lr_share(5, 1.0, schedule) == pytest.approx(schedule.final_share)


def test_an_interrupted_run_goes_on_with_the_same_batches_and_state(
    packer: Packer, tmp_path: Path
) -> None:
    def new_run(folder: Path, seed: int) -> PretrainingRun:
        model = new_model(replace(TINY, seed=seed), 0)
        objective = Prediction(model, packer, TINY.batch_tokens)
        return PretrainingRun(folder, objective, TINY.schedule, blocks=BLOCKS)

    run = new_run(tmp_path, 1)
    run.train(1000.0, max_steps=3)
    resumed = new_run(tmp_path, 2)
    assert resumed.resume()
    assert resumed.progress == run.progress
    models = [resumed.objective.model, run.objective.model]
    for mine, theirs in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(mine, theirs)
    losses = [batch_loss(model, packer.batch(3)).item() for model in models]
    assert losses[0] == losses[1]
    assert not new_run(tmp_path / "new", 1).resume()


def test_the_export_is_a_base_model_that_the_server_loads(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    save_tokenizer(tokenizer, tmp_path, max_length=TINY.positions)
    end = tokenizer.get_vocab()[END]
    export(new_model(TINY, end), tmp_path)
    model = load_model(str(tmp_path), device="cpu", dtype="float32")
    assert model.spec.context_limit == TINY.positions
    assert model.text.eos_token_ids == frozenset({end})
    ids = model.text.render(" {input} <|endoftext|>", "the <|endoftext|>")
    assert ids.count(end) == 1
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token == END
