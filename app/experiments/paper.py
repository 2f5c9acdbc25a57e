"""The numbers that Li & Liang (2021) report, ACL version, as data to print beside ours.

GPT-2 medium on E2E, WebNLG and DART (Tables 2 and 5), BART large on XSUM (Table 3). METEOR and TER
of WebNLG and DART are printed there as shares; here they go from 0 to 100, as ours do.
"""

from __future__ import annotations

from collections.abc import Mapping

from app.evaluation.scores import TASKS

SOURCE = "Li & Liang 2021 (ACL), GPT-2 medium; BART large on XSUM"

_E2E = TASKS["e2e"]
_WEBNLG = tuple(prefix + name for name in TASKS["webnlg"] for prefix in ("", "unseen_", "all_"))
_DART = TASKS["dart"]
_XSUM = TASKS["xsum"]

Scores = Mapping[str, float]


def _row(names: tuple[str, ...], *values: float) -> Scores:
    return dict(zip(names, values, strict=True))


TABLE: Mapping[str, Mapping[str, Scores]] = {
    "e2e": {
        "finetune": _row(_E2E, 68.8, 8.71, 46.1, 71.1, 2.43),
        "finetune-top2": _row(_E2E, 68.1, 8.59, 46.0, 70.8, 2.41),
        "adapter-3%": _row(_E2E, 68.9, 8.71, 46.1, 71.3, 2.47),
        "adapter-0.1%": _row(_E2E, 66.3, 8.41, 45.0, 69.8, 2.40),
        "prefix": _row(_E2E, 70.3, 8.82, 46.3, 72.1, 2.46),
    },
    "webnlg": {
        "finetune": _row(_WEBNLG, 64.7, 26.7, 45.7, 46, 30, 38, 33, 78, 54),
        "finetune-top2": _row(_WEBNLG, 53.6, 18.9, 36.0, 38, 23, 31, 49, 99, 72),
        "adapter-3%": _row(_WEBNLG, 60.5, 47.9, 54.8, 43, 38, 41, 35, 46, 39),
        "adapter-0.1%": _row(_WEBNLG, 54.5, 45.1, 50.2, 39, 36, 38, 40, 46, 43),
        "prefix": _row(_WEBNLG, 62.9, 45.3, 55.0, 44, 37, 41, 35, 51, 42),
    },
    "dart": {
        "finetune": _row(_DART, 46.2, 39, 46),
        "finetune-top2": _row(_DART, 41.0, 34, 56),
        "adapter-3%": _row(_DART, 45.2, 38, 46),
        "adapter-0.1%": _row(_DART, 42.4, 36, 48),
        "prefix": _row(_DART, 46.4, 38, 46),
    },
    "xsum": {
        "finetune": _row(_XSUM, 45.14, 22.27, 37.25),
        "prefix": _row(_XSUM, 43.80, 20.93, 36.05),
    },
}
"""By task and method, trained on all data. WebNLG: seen, `unseen_` and `all_` categories."""

ABLATION: Mapping[tuple[str, int], Scores] = {
    ("embedding", 1): _row(_E2E, 48.1, 3.33, 32.1, 60.2, 1.10),
    ("embedding", 10): _row(_E2E, 62.2, 6.70, 38.6, 66.4, 1.75),
    ("embedding", 20): _row(_E2E, 61.9, 7.11, 39.3, 65.6, 1.85),
    ("infix", 1): _row(_E2E, 67.9, 8.63, 45.8, 69.4, 2.42),
    ("infix", 10): _row(_E2E, 67.2, 8.48, 45.8, 69.9, 2.40),
    ("infix", 20): _row(_E2E, 66.7, 8.47, 45.8, 70.0, 2.42),
}
"""E2E by method and length."""

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
    "extrapolation": "The paper (WebNLG): on unseen categories prefix-tuning (45.3 BLEU) and"
    " adapters (47.9) are far better than fine-tuning (26.7).",
    "rates": "The paper chose rates on development data: 5e-5 or 8e-5 for prefix-tuning.",
    "baselines": "The paper: at 0.1 % of the parameters prefix-tuning is better than adapters of"
    " that size (by 4.1 BLEU a data set on average) and comparable to fine-tuning.",
}
"""What the paper's figures and tables say, by experiment. Its curves have no printed values."""


def paper_scores(experiment: str, task: str, method: str, length: int, usual: int) -> Scores:
    """The paper's scores for a row of an experiment's table; empty where it prints none.

    `usual` is the length of the paper's prefix on that task, to which its Table 2 belongs.
    """
    if experiment in ("low-data", "initialisation", "data-size"):
        return {}
    if (method, length) in ABLATION:
        return ABLATION[method, length] if task == "e2e" else {}
    if method == "prefix" and length != usual:
        return {}
    return TABLE[task].get(method, {})
