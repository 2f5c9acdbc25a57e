"""Metrics agree with the official scorers, and are left out with a reason where they cannot run."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from app.errors import InvalidRequest
from app.evaluation.baselines import e2e_template
from app.evaluation.coco import meteor_statistics
from app.evaluation.metrics import corpus_bleu, mean_rouge
from app.evaluation.scores import LABELS, TASKS, Scores, metric_names, score_texts
from app.evaluation.statistics import mean_of

INSTANCES = json.loads((Path(__file__).parent / "e2e_ten.json").read_text(encoding="utf-8"))
REFERENCES = [each["targets"] for each in INSTANCES["instances"]]
TEXTS = [e2e_template(each["input"]) for each in INSTANCES["instances"]]

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")


@pytest.mark.timeout(120)
@needs_java
def test_scores_of_ten_instances_are_those_of_the_official_scorers() -> None:
    """Figures of e2e-metrics' pymteval (BLEU, NIST) and of pycocoevalcap 1.2 for these texts."""
    scores = score_texts(TEXTS, REFERENCES, TASKS["e2e"]).statistics
    assert {name: f"{each.score:.4f}" for name, each in scores.items()} == {
        "bleu": "47.4745",
        "nist": "6.4506",
        "meteor": "42.8629",
        "rouge_l_coco": "61.9945",
        "cider": "1.7023",
    }


def test_nist_of_its_own_references_gains_all_information() -> None:
    """Ten words seen once each: a word tells log2(10) bits, a longer n-gram nothing new."""
    text = "one two three four five six seven eight nine ten"
    scores = score_texts([text], [[text]], ["nist"])
    assert scores.statistics["nist"].score == pytest.approx(np.log2(10))


def test_nist_halves_where_the_text_is_two_thirds_as_long() -> None:
    reference = "a b c d e f g h i"
    short = score_texts(["a b c d e f"], [[reference]], ["nist"]).statistics["nist"].score
    assert short == pytest.approx(np.log2(9) / 2)


def test_nist_of_texts_shorter_than_its_n_grams_is_a_number() -> None:
    assert score_texts(["", "a"], [["a b"], ["a"]], ["nist"]).statistics["nist"].score >= 0


def test_bleu_ter_and_rouge_are_the_libraries_corpus_scores() -> None:
    scores = score_texts(TEXTS, REFERENCES, ["bleu", "ter", "rouge1", "rougeL"])
    assert scores.statistics["bleu"].score == pytest.approx(corpus_bleu(TEXTS, REFERENCES)[0])
    rouge = mean_rouge(TEXTS, REFERENCES)
    assert scores.statistics["rouge1"].score == pytest.approx(rouge.rouge1)
    assert scores.statistics["rougeL"].score == pytest.approx(rouge.rougeL)
    same = score_texts(["A b c d"], [["a b c d", "x"]], ["ter"]).statistics["ter"].score
    half = score_texts(["a b x y"], [["a b c d"]], ["ter"]).statistics["ter"].score
    assert (same, half) == (0, 50)


def test_ter_counts_a_punctuation_mark_as_a_word() -> None:
    scores = score_texts(["He left."], [["He left ."]], ["ter"]).statistics
    assert scores["ter"].score == 0
    scores = score_texts(["In Rome, he left"], [["In Rome he left"]], ["ter"]).statistics
    assert scores["ter"].score == 25


class Scorer:
    """Stands for `bert_score.BERTScorer`, which is not installed here."""

    def __init__(self, *, model_type: str, num_layers: int, lang: str) -> None:
        if lang != "en" or not Path(model_type).is_dir():
            raise KeyError(model_type)
        self.num_layers = num_layers

    def score(
        self, texts: list[str], references: list[list[str]]
    ) -> tuple[None, None, list[float]]:
        if "broken" in texts:
            raise RuntimeError("no memory")
        return None, None, [self.num_layers / 100 for _ in references]


def test_bertscore_takes_the_layers_from_the_folders_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bert_score", SimpleNamespace(BERTScorer=Scorer))
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 6}')
    scores = score_texts(["a", "b"], [["a"], ["b", "c"]], ["bertscore"], tmp_path)
    assert scores.statistics["bertscore"].score == pytest.approx(6)
    failed = score_texts(["broken"], [["a"]], ["bleu", "bertscore"], tmp_path)
    assert list(failed.statistics) == ["bleu"]
    assert "no memory" in failed.left_out["bertscore"]
    fewer = score_texts(["a"], [["a"]], ["bertscore"], tmp_path, 3).statistics
    assert fewer["bertscore"].score == pytest.approx(3)
    missing = score_texts(["a"], [["a"]], ["bertscore"], tmp_path / "none")
    assert "num_hidden_layers" in missing.left_out["bertscore"]


def test_without_java_its_metrics_are_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    scores = score_texts(["a"], [["a"]], ["bleu", "meteor", "cider"])
    assert list(scores.statistics) == ["bleu"]
    assert set(scores.left_out) == {"meteor", "cider"}
    assert "Java is missing; install" in scores.left_out["meteor"]


def test_without_their_library_metrics_are_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    scores = score_texts(["a"], [["a"]], ["rouge_l_coco", "bertscore"])
    assert not scores.statistics
    assert "pip install 'polyprefix[train]'" in scores.left_out["rouge_l_coco"]
    assert "--bertscore-model" in scores.left_out["bertscore"]
    monkeypatch.setitem(sys.modules, "bert_score", None)
    left_out = score_texts(["a"], [["a"]], ["bertscore"], Path("model")).left_out
    assert "`bert-score` is missing" in left_out["bertscore"]


@needs_java
def test_a_program_that_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho 'no memory' >&2\nexit 1\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    left_out = score_texts(["a"], [["a"]], ["cider"]).left_out
    assert "no memory" in left_out["cider"]
    with pytest.raises(Exception, match=r"ended without an answer|Broken pipe"):
        meteor_statistics((["a"], [["a"]]))


def test_names_of_metrics_and_tasks_are_read() -> None:
    assert metric_names("xsum") == ("rouge1", "rouge2", "rougeL")
    assert metric_names("bleu, ter") == ("bleu", "ter")
    assert metric_names("webnlg,bleu,nist") == ("bleu", "meteor", "ter", "nist")
    assert metric_names("all") == tuple(LABELS)
    with pytest.raises(InvalidRequest, match="'blue' is unknown; give a task"):
        metric_names("blue")


def test_small_scores_are_rounded_to_four_places() -> None:
    scores = Scores({"bleu": mean_of([1.23456]), "cider": mean_of([1.23456])})
    assert scores.rounded() == {"bleu": 1.23, "cider": 1.2346}


def test_scores_need_as_many_references_as_texts() -> None:
    with pytest.raises(InvalidRequest, match="as many lists"):
        score_texts(["a"], [], ["bleu"])
