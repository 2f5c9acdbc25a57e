"""The numbers that Li & Liang (2021) report, ACL version, as data to print beside ours.

Tables 2 to 5. METEOR and TER of WebNLG and DART are printed there as shares; here they go from 0 to
100, as ours do. Numbers on development data (Tables 7 and 9) are left out: ours are on test data.
"""

from __future__ import annotations

from collections.abc import Mapping

from app.evaluation.scores import TASKS
from app.experiments.tasks import EXPERIMENT_TASKS, NEWS_TO_SPORTS, WITHIN_NEWS

_LARGE = "gpt2-large"
_E2E = TASKS["e2e"]
_WEBNLG = TASKS["webnlg"]
_DART = TASKS["dart"]
_XSUM = TASKS["xsum"]
_XSUM_SMALL = 5
"""Length of the prefix of 0.1 % on XSUM: the paper prints the share alone."""

Scores = Mapping[str, float]
_ByMethod = Mapping[tuple[str, int], Scores]
"""By method and length (0: the method has none)."""


def _row(names: tuple[str, ...], *values: float) -> Scores:
    return dict(zip(names, values, strict=True))


def _length(task: str) -> int:
    return EXPERIMENT_TASKS[task].paper("prefix").length


_MEDIUM: Mapping[str, _ByMethod] = {
    "e2e": {
        ("finetune", 0): _row(_E2E, 68.8, 8.71, 46.1, 71.1, 2.43),
        ("finetune-top2", 0): _row(_E2E, 68.1, 8.59, 46.0, 70.8, 2.41),
        ("adapter-3%", 0): _row(_E2E, 68.9, 8.71, 46.1, 71.3, 2.47),
        ("adapter-0.1%", 0): _row(_E2E, 66.3, 8.41, 45.0, 69.8, 2.40),
        ("prefix", _length("e2e")): _row(_E2E, 70.3, 8.82, 46.3, 72.1, 2.46),
    },
    "webnlg": {
        ("finetune", 0): _row(_WEBNLG, 45.7, 38, 54),
        ("finetune-top2", 0): _row(_WEBNLG, 36.0, 31, 72),
        ("adapter-3%", 0): _row(_WEBNLG, 54.8, 41, 39),
        ("adapter-0.1%", 0): _row(_WEBNLG, 50.2, 38, 43),
        ("prefix", _length("webnlg")): _row(_WEBNLG, 55.0, 41, 42),
    },
    "dart": {
        ("finetune", 0): _row(_DART, 46.2, 39, 46),
        ("finetune-top2", 0): _row(_DART, 41.0, 34, 56),
        ("adapter-3%", 0): _row(_DART, 45.2, 38, 46),
        ("adapter-0.1%", 0): _row(_DART, 42.4, 36, 48),
        ("prefix", _length("dart")): _row(_DART, 46.4, 38, 46),
    },
    "xsum": {
        ("finetune", 0): _row(_XSUM, 45.14, 22.27, 37.25),
        ("prefix", _length("xsum")): _row(_XSUM, 43.80, 20.93, 36.05),
        ("prefix", _XSUM_SMALL): _row(_XSUM, 42.92, 20.03, 35.05),
    },
}
"""Trained on all data, scored on all test inputs: Table 2 (GPT-2 medium), Table 3 (BART large)."""

_GPT2_LARGE: Mapping[str, _ByMethod] = {
    "e2e": {
        ("finetune", 0): _row(_E2E, 68.5, 8.78, 46.0, 69.9, 2.45),
        ("prefix", _length("e2e")): _row(_E2E, 70.3, 8.85, 46.2, 71.7, 2.47),
    },
    "webnlg": {
        ("finetune", 0): _row(_WEBNLG, 55.5, 42, 42),
        ("prefix", _length("webnlg")): _row(_WEBNLG, 56.3, 42, 40),
    },
    "dart": {
        ("finetune", 0): _row(_DART, 47.0, 39, 46),
        ("prefix", _length("dart")): _row(_DART, 46.7, 39, 45),
    },
}
"""The same of GPT-2 large (Table 2)."""

_EMBEDDING_AND_INFIX: _ByMethod = {
    ("embedding", 1): _row(_E2E, 48.1, 3.33, 32.1, 60.2, 1.10),
    ("embedding", 10): _row(_E2E, 62.2, 6.70, 38.6, 66.4, 1.75),
    ("embedding", 20): _row(_E2E, 61.9, 7.11, 39.3, 65.6, 1.85),
    ("infix", 1): _row(_E2E, 67.9, 8.63, 45.8, 69.4, 2.42),
    ("infix", 10): _row(_E2E, 67.2, 8.48, 45.8, 69.9, 2.40),
    ("infix", 20): _row(_E2E, 66.7, 8.47, 45.8, 70.0, 2.42),
}
"""Table 5, on E2E."""


def _apart(*values: float) -> Scores:
    """BLEU, METEOR and TER of WebNLG, each on seen and then on unseen categories."""
    return _row(tuple(part + name for name in _WEBNLG for part in ("", "unseen_")), *values)


def _unseen(*values: float) -> Scores:
    return _row(tuple("unseen_" + name for name in _XSUM), *values)


_EXTRAPOLATION: Mapping[tuple[str, str], _ByMethod] = {
    ("webnlg", ""): {
        ("finetune", 0): _apart(64.7, 26.7, 46, 30, 33, 78),
        ("finetune-top2", 0): _apart(53.6, 18.9, 38, 23, 49, 99),
        ("adapter-3%", 0): _apart(60.5, 47.9, 43, 38, 35, 46),
        ("adapter-0.1%", 0): _apart(54.5, 45.1, 39, 36, 40, 46),
        ("prefix", _length("webnlg")): _apart(62.9, 45.3, 44, 37, 35, 51),
    },
    ("xsum", WITHIN_NEWS): {
        ("finetune", 0): _unseen(39.20, 16.35, 31.15),
        ("prefix", 80): _unseen(39.41, 16.87, 31.47),
    },
    ("xsum", NEWS_TO_SPORTS): {
        ("finetune", 0): _unseen(38.15, 15.51, 30.26),
        ("prefix", 40): _unseen(39.23, 16.74, 31.51),
    },
}
"""Held-out categories by task and what is held out: Table 2 (WebNLG), Table 4 (XSUM)."""

_EXTRAPOLATION_LARGE: _ByMethod = {
    ("finetune", 0): _apart(65.3, 43.1, 46, 38, 33, 53),
    ("prefix", _length("webnlg")): _apart(63.4, 47.7, 45, 39, 34, 48),
}
"""WebNLG by GPT-2 large."""

FINDINGS = {
    "prefix-length": "The paper: scores rise with the length up to 10 (DART) or 200 (XSUM), then"
    " fall a little, while the training loss goes on falling.",
    "data-size": "The paper (E2E): prefix-tuning is better than fine-tuning from 20 % of the data"
    " on; at 10 % they are alike.",
    "initialisation": "The paper: with 100 examples, random values score lowest and vary most; real"
    " words are much better, and words of the task a little better than others.",
    "low-data": "The paper: with 50 to 500 examples, prefix-tuning is 2.9 BLEU better than"
    " fine-tuning on average, and the gap narrows with more data.",
    "ablation": "The paper (E2E): a prefix (70.3 BLEU) is better than an infix (67.9 at best), and"
    " both are better than embeddings alone (62.2 at best).",
    "extrapolation": "The paper: on unseen categories of WebNLG prefix-tuning (45.3 BLEU) and"
    " adapters (47.9) are far better than fine-tuning (26.7). On unseen kinds of XSUM's news it is"
    " a little better (ROUGE-L 31.47 against 31.15), on sports too (31.51 against 30.26).",
    "rates": "The paper chose rates on development data: 5e-5 or 8e-5 for prefix-tuning.",
    "baselines": "The paper: at 0.1 % of the parameters prefix-tuning is better than adapters of"
    " that size (by 4.1 BLEU a data set on average) and comparable to fine-tuning.",
}
"""What the paper's figures and tables say, by experiment. Its curves have no printed values."""


def paper_scores(
    experiment: str, task: str, method: str, length: int, *, held_out: str = "", model: str = ""
) -> Scores:
    """The paper's scores for a row of an experiment's table; empty where it prints none.

    `held_out`: what `extrapolation` holds out of XSUM. `model`: our base model; for GPT-2 large the
    numbers are those of that model.
    """
    key, large = (method, length), is_large(model) and task != "xsum"
    whole = (_GPT2_LARGE if large else _MEDIUM)[task]
    if experiment == "baselines":
        return whole.get(key, {})
    if experiment in ("prefix-length", "ablation"):
        others = _EMBEDDING_AND_INFIX if (experiment, task) == ("ablation", "e2e") else {}
        prefixes = whole if method == "prefix" else {} if large else others
        return prefixes.get(key, {})
    if experiment == "extrapolation":
        of_webnlg = _EXTRAPOLATION_LARGE if large else _EXTRAPOLATION["webnlg", ""]
        found = of_webnlg if task == "webnlg" else _EXTRAPOLATION.get((task, held_out), {})
        return found.get(key, {})
    return {}


def is_large(model: str) -> bool:
    """Whether a base model is GPT-2 large, by the last part of its name."""
    return model.rstrip("/").rpartition("/")[2] == _LARGE


def source(model: str) -> str:
    """Where the numbers are from, for a table of runs on `model`."""
    base = "GPT-2 large" if is_large(model) else "GPT-2 medium"
    return f"Li & Liang 2021 (ACL), {base}; BART large on XSUM"
