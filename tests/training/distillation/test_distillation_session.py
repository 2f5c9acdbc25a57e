"""From a text to a prefix: what is learned, what is kept, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from app.errors import InvalidRequest
from app.evaluation.likelihood import contrast
from app.evaluation.text_pairs import TokenPair
from app.model.dense import keys_values_of
from app.model.frozen import FrozenModel
from app.model.load import load_model
from app.prefix.prefix import PrefixMetadata
from app.settings import DEMO_MODEL
from app.training.distillation.method import divergence_of
from app.training.distillation.session import DistillationJob, DistillationSession
from app.training.distillation.start import start_ids
from app.training.objective import prefixed_rows
from app.training.progress import Report
from app.training.recipe import Recipe
from app.training.words import words_prefix

TEXT = (
    "The Punter is a restaurant near Cafe Sicilia. It serves cheap Italian food. "
    "Families with children are welcome there. The Mill is a pub in the city centre. "
    "It serves English food and has a low customer rating. Aromi is a coffee shop by the river. "
    "It serves expensive Chinese food, and children should not go there.\n"
)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "guide.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def demo() -> FrozenModel:
    return load_model(str(DEMO_MODEL), device="cpu", dtype="float32")


def a_job(text: Path, **changes: object) -> DistillationJob:
    recipe = Recipe(length=8, max_steps=6, batch_size=4, lr=1e-2, warmup_steps=0, validate_every=3)
    job = DistillationJob("", text, recipe, text.with_suffix(".checkpoint"), exchanges=16)
    return replace(job, **changes)  # type: ignore[arg-type]


def quiet(*_: object) -> None:
    """No progress."""


def silent(_: Report) -> None:
    """No progress of training."""


def test_a_distilled_prefix_is_nearer_to_the_text_than_the_texts_own_words(
    demo: FrozenModel, text: Path
) -> None:
    """On exchanges that were not trained on, over the whole vocabulary."""
    job = a_job(text, exchanges=16)
    job = replace(job, recipe=replace(job.recipe, length=16, max_steps=16, lr=0.1))
    session = DistillationSession(job, demo)
    session.prepare(quiet)
    session.train(silent)
    scores = session.outcome().scores["divergence"]
    assert scores["last"] < 0.8 * scores["first"]
    assert scores["first"] < scores["base"]

    ids = session.framing.context_ids(demo.text, session.parts[0].token_ids)
    cut = words_prefix(demo, session.start_ids(), PrefixMetadata(position_offset=16))
    distilled = session.prefix({}).to(demo.device, demo.dtype)
    question = tuple(demo.text.encode("The Punter is"))
    answer = tuple(demo.text.encode(" a restaurant near Cafe Sicilia"))
    behind = {
        name: contrast(
            demo, None, prefix, TokenPair(ids + question, answer), TokenPair(question, answer)
        ).kl_ab
        for name, prefix in (("cut", cut), ("distilled", distilled))
    }
    assert behind["distilled"] < behind["cut"]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_teacher_is_the_model_with_the_text_in_its_context(
    tiny_models: dict[str, FrozenModel], family: str, text: Path
) -> None:
    """A student that is the whole context has no divergence."""
    model = tiny_models[family]
    text.write_text(TEXT[:80], encoding="utf-8")
    session = DistillationSession(a_job(text), model)
    session.prepare(quiet)
    assert len(session.parts) == 1
    context = session.framing.context_ids(model.text, session.parts[0].token_ids)
    whole = {"decoder": keys_values_of(model, context)}
    assert divergence_of(model, prefixed_rows(model, whole, session.pairs)).mean.item() < 1e-4
    assert divergence_of(model, prefixed_rows(model, {}, session.pairs)).mean.item() > 1e-2


def test_a_long_text_is_taught_part_by_part(tiny_gpt2: FrozenModel, text: Path) -> None:
    session = DistillationSession(a_job(text, part=40, exchanges=24), tiny_gpt2)
    seen: list[tuple[str, int, int]] = []
    session.prepare(lambda *done: seen.append(done))
    count = len(session.parts)
    assert count > 5
    assert ("exchanges", count, count) in seen
    assert seen[-1] == ("teacher", len(session.pairs), len(session.pairs))
    assert len(session.pairs) >= count, "every part has its exchanges"
    assert all(pair.chances.shape == (len(pair.target_ids), 33) for pair in session.pairs)
    assert all(
        torch.allclose(pair.chances.sum(-1), torch.ones(len(pair.target_ids)), atol=1e-5)
        for pair in session.pairs
    )


def test_the_same_seed_makes_the_same_exchanges_and_another_seed_others(
    tiny_gpt2: FrozenModel, text: Path
) -> None:
    found = []
    for seed in (1, 1, 2):
        job = a_job(text)
        session = DistillationSession(
            replace(job, recipe=replace(job.recipe, seed=seed)), tiny_gpt2
        )
        session.prepare(quiet, resume=False)
        found.append([(pair.prompt_ids, pair.target_ids) for pair in session.pairs])
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_a_resumed_distillation_ends_bit_for_bit_like_an_uninterrupted_one(
    tiny_gpt2: FrozenModel, text: Path, tmp_path: Path
) -> None:
    whole = DistillationSession(a_job(text, checkpoint=tmp_path / "whole"), tiny_gpt2)
    whole.prepare(quiet)
    whole.train(silent)
    first = DistillationSession(a_job(text, checkpoint=tmp_path / "cut"), tiny_gpt2)
    first.prepare(quiet)
    first.trainer.run(silent, until=3)
    second = DistillationSession(a_job(text, checkpoint=tmp_path / "cut"), tiny_gpt2)
    asked: list[str] = []
    assert second.prepare(lambda what, *_: asked.append(what))
    assert not asked, "the checkpoint holds exchanges and teacher"
    assert second.trainer.step == 3
    second.train(silent)
    mine, theirs = second.trainer.result()["decoder"], whole.trainer.result()["decoder"]
    assert torch.equal(mine.keys, theirs.keys)
    assert torch.equal(mine.values, theirs.values)
    assert second.outcome().scores == whole.outcome().scores


def test_a_run_that_ends_before_its_first_step_keeps_its_exchanges(
    tiny_gpt2: FrozenModel, text: Path
) -> None:
    DistillationSession(a_job(text), tiny_gpt2).prepare(quiet)
    again = DistillationSession(a_job(text), tiny_gpt2)
    assert again.prepare(quiet)
    assert again.trainer.step == 0


def test_the_checkpoint_of_another_text_is_refused(tiny_gpt2: FrozenModel, text: Path) -> None:
    DistillationSession(a_job(text), tiny_gpt2).prepare(quiet)
    text.write_text(TEXT + "More.", encoding="utf-8")
    other = DistillationSession(a_job(text), tiny_gpt2)
    with pytest.raises(InvalidRequest, match="another run"):
        other.prepare(quiet)
    assert not other.prepare(quiet, resume=False)


def test_the_provenance_names_the_text_by_its_digest_alone(
    tiny_gpt2: FrozenModel, text: Path
) -> None:
    session = DistillationSession(a_job(text, note="a test"), tiny_gpt2)
    session.prepare(quiet)
    session.train(silent)
    prefix = session.prefix(session.outcome().scores)
    said = str(prefix.metadata)
    assert session.document.sha256 in said
    assert not [word for word in TEXT.split() if len(word) > 5 and word in said]
    assert prefix.length == prefix.metadata.position_offset == 8
    assert prefix.metadata.provenance["scores"]["divergence"].keys() == {"first", "last", "base"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"part": 200}, "part: the model"),
        ({"part": 8}, "at least 32"),
        ({"start": "middle"}, "first, spread"),
        ({"context": "nothing"}, "context template"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    changes: dict[str, object], reason: str, tiny_gpt2: FrozenModel, text: Path
) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        DistillationSession(a_job(text, **changes), tiny_gpt2).prepare(quiet)


def test_a_length_that_holds_the_text_or_fills_the_context_is_refused(
    tiny_gpt2: FrozenModel, text: Path
) -> None:
    for length, written, reason in (
        (64, "A short text.", "without training"),
        (120, TEXT, "at most 96"),
        (2000, TEXT, "between 1 and 1024"),
    ):
        text.write_text(written, encoding="utf-8")
        job = a_job(text)
        job = replace(job, recipe=replace(job.recipe, length=length))
        with pytest.raises(InvalidRequest, match=reason):
            DistillationSession(job, tiny_gpt2)


def test_a_model_with_an_encoder_is_refused(tiny_bart: FrozenModel, text: Path) -> None:
    with pytest.raises(InvalidRequest, match="without an encoder"):
        DistillationSession(a_job(text), tiny_bart)


def test_a_spread_start_takes_tokens_from_all_over_the_text(
    tiny_gpt2: FrozenModel, text: Path
) -> None:
    session = DistillationSession(a_job(text), tiny_gpt2)
    encoder, ids = tiny_gpt2.text, tuple(range(100, 300))
    after = tuple(encoder.encode("\n\n"))
    first = start_ids(session.framing, encoder, ids, 40, "first")
    assert first == (*ids[: 40 - len(after)], *after)
    spread = start_ids(session.framing, encoder, ids, 40, "spread")
    assert len(spread) == 40
    assert spread[0] == ids[0]
    assert spread[-len(after) - 1] == ids[-1]
    assert list(spread[: -len(after)]) == sorted(set(spread[: -len(after)]))
    assert start_ids(session.framing, encoder, ids, 3, "first") == ids[:3]
