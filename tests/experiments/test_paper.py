"""Every number of the paper stands beside the row to which it belongs, and beside no other."""

from __future__ import annotations

import pytest

from app.experiments.paper import paper_scores, source
from app.experiments.tasks import EXPERIMENT_TASKS, NEWS_TO_SPORTS, WITHIN_NEWS, held_out_news

METHODS = {"FT-FULL": "finetune", "FT-TOP2": "finetune-top2", "PREFIX": "prefix"} | {
    f"ADAPTER({share})": f"adapter-{share}" for share in ("3%", "0.1%")
}
LENGTHS = {"e2e": 5, "webnlg": 5, "dart": 10, "xsum": 100}

# E2E: BLEU NIST METEOR ROUGE-L CIDEr; WebNLG: BLEU, METEOR, TER on seen/unseen/all categories;
# DART: BLEU METEOR TER
TABLE_2 = """
FT-FULL       | 68.8 8.71 46.1 71.1 2.43 | 64.7/26.7/45.7 .46/.30/.38 .33/.78/.54 | 46.2 .39 .46
FT-TOP2       | 68.1 8.59 46.0 70.8 2.41 | 53.6/18.9/36.0 .38/.23/.31 .49/.99/.72 | 41.0 .34 .56
ADAPTER(3%)   | 68.9 8.71 46.1 71.3 2.47 | 60.5/47.9/54.8 .43/.38/.41 .35/.46/.39 | 45.2 .38 .46
ADAPTER(0.1%) | 66.3 8.41 45.0 69.8 2.40 | 54.5/45.1/50.2 .39/.36/.38 .40/.46/.43 | 42.4 .36 .48
PREFIX        | 70.3 8.82 46.3 72.1 2.46 | 62.9/45.3/55.0 .44/.37/.41 .35/.51/.42 | 46.4 .38 .46
"""
GPT2_LARGE = """
FT-FULL       | 68.5 8.78 46.0 69.9 2.45 | 65.3/43.1/55.5 .46/.38/.42 .33/.53/.42 | 47.0 .39 .46
PREFIX        | 70.3 8.85 46.2 71.7 2.47 | 63.4/47.7/56.3 .45/.39/.42 .34/.48/.40 | 46.7 .39 .45
"""
# ROUGE-1/-2/-L
TABLE_3 = {
    ("finetune", 0): "45.14/22.27/37.25",
    ("prefix", 100): "43.80/20.93/36.05",
    ("prefix", 5): "42.92/20.03/35.05",
}
TABLE_4 = {
    (NEWS_TO_SPORTS, "finetune", 0): "38.15/15.51/30.26",
    (NEWS_TO_SPORTS, "prefix", 40): "39.23/16.74/31.51",
    (WITHIN_NEWS, "finetune", 0): "39.20/16.35/31.15",
    (WITHIN_NEWS, "prefix", 80): "39.41/16.87/31.47",
}
TABLE_5 = {
    ("prefix", 5): "70.3 8.82 46.3 72.1 2.46",
    ("embedding", 1): "48.1 3.33 32.1 60.2 1.10",
    ("embedding", 10): "62.2 6.70 38.6 66.4 1.75",
    ("embedding", 20): "61.9 7.11 39.3 65.6 1.85",
    ("infix", 1): "67.9 8.63 45.8 69.4 2.42",
    ("infix", 10): "67.2 8.48 45.8 69.9 2.40",
    ("infix", 20): "66.7 8.47 45.8 70.0 2.42",
}
E2E = ("bleu", "nist", "meteor", "rouge_l_coco", "cider")
TRIPLES = ("bleu", "meteor", "ter")
ROUGE = ("rouge1", "rouge2", "rougeL")


def numbers(text: str) -> list[float]:
    """Shares, which begin with a point, as percent."""
    parts = text.replace("/", " ").split()
    return [100 * float(part) if part.startswith(".") else float(part) for part in parts]


def length(task: str, method: str) -> int:
    return LENGTHS[task] if method == "prefix" else 0


ROWS = [
    (model, METHODS[name.strip()], *map(numbers, cells))
    for model, table in (("openai/gpt2-medium", TABLE_2), ("gpt2-large", GPT2_LARGE))
    for name, *cells in (line.split("|") for line in table.strip().splitlines())
]


@pytest.mark.parametrize(("model", "method", "e2e", "webnlg", "dart"), ROWS)
def test_baselines_stand_beside_table_2_with_all_categories_of_webnlg(
    model: str, method: str, e2e: list[float], webnlg: list[float], dart: list[float]
) -> None:
    expected = {
        "e2e": dict(zip(E2E, e2e, strict=True)),
        "webnlg": dict(zip(TRIPLES, webnlg[2::3], strict=True)),
        "dart": dict(zip(TRIPLES, dart, strict=True)),
    }
    for task, scores in expected.items():
        found = paper_scores("baselines", task, method, length(task, method), model=model)
        assert found == pytest.approx(scores), task
        for experiment in ("prefix-length", "ablation"):
            found = paper_scores(experiment, task, method, length(task, method), model=model)
            assert found == (pytest.approx(scores) if method == "prefix" else {}), task


@pytest.mark.parametrize(("model", "method", "webnlg"), [(*row[:2], row[3]) for row in ROWS])
def test_extrapolation_has_seen_and_unseen_categories_of_webnlg_and_nothing_of_e2e_and_dart(
    model: str, method: str, webnlg: list[float]
) -> None:
    expected = dict(zip(TRIPLES, webnlg[0::3], strict=True))
    unseen = zip(TRIPLES, webnlg[1::3], strict=True)
    expected |= {f"unseen_{name}": score for name, score in unseen}
    found = paper_scores("extrapolation", "webnlg", method, length("webnlg", method), model=model)
    assert found == pytest.approx(expected)
    for task in ("e2e", "dart"):
        assert not paper_scores("extrapolation", task, method, length(task, method), model=model)


def test_summaries_stand_beside_table_3() -> None:
    for (method, positions), cells in TABLE_3.items():
        expected = dict(zip(ROUGE, numbers(cells), strict=True))
        assert paper_scores("baselines", "xsum", method, positions) == expected
        of_length = paper_scores("prefix-length", "xsum", method, positions)
        assert of_length == (expected if method == "prefix" else {})
        assert not paper_scores("extrapolation", "xsum", method, positions)


def test_held_out_news_stand_beside_table_4() -> None:
    for (part, method, positions), cells in TABLE_4.items():
        names = [f"unseen_{name}" for name in ROUGE]
        expected = dict(zip(names, numbers(cells), strict=True))
        found = paper_scores("extrapolation", "xsum", method, positions, held_out=part)
        assert found == expected


def test_the_ablation_stands_beside_table_5() -> None:
    for (method, positions), cells in TABLE_5.items():
        expected = dict(zip(E2E, numbers(cells), strict=True))
        assert paper_scores("ablation", "e2e", method, positions) == expected
        if method != "prefix":
            assert not paper_scores("ablation", "webnlg", method, positions)
            assert not paper_scores("ablation", "e2e", method, positions, model="gpt2-large")
            assert not paper_scores("baselines", "e2e", method, positions)


@pytest.mark.parametrize("task", EXPERIMENT_TASKS)
def test_what_the_paper_does_not_print_stands_beside_nothing(task: str) -> None:
    for experiment in ("data-size", "initialisation", "low-data", "rates"):
        assert not paper_scores(experiment, task, "prefix", LENGTHS[task])
    for experiment in ("baselines", "ablation", "prefix-length"):
        assert not paper_scores(experiment, task, "prefix", 7)
        assert not paper_scores(experiment, task, "lora", 0)


def test_a_table_says_which_model_the_numbers_are_of() -> None:
    assert source("gpt2-medium") == "Li & Liang 2021 (ACL), GPT-2 medium; BART large on XSUM"
    assert "GPT-2 large;" in source("/models/gpt2-large/")


@pytest.mark.parametrize(
    ("task", "values", "name"),
    [
        ("xsum", ("Sport", "uk-sports"), NEWS_TO_SPORTS),
        ("xsum", ("health", "Technology"), WITHIN_NEWS),
        ("xsum", ("sport", "health"), ""),
        ("xsum", ("world",), ""),
        ("xsum", (), ""),
        ("webnlg", ("Sport",), ""),
    ],
)
def test_held_out_news_are_named_as_in_the_paper(
    task: str, values: tuple[str, ...], name: str
) -> None:
    assert held_out_news(EXPERIMENT_TASKS[task], values) == name
