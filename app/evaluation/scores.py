"""The metrics by name, which of them a task reports, and scores of texts by any of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, TER

from app.errors import InvalidRequest, Unavailable
from app.evaluation import coco
from app.evaluation.nist import nist_statistics
from app.evaluation.statistics import Floats, Statistics, mean_of

LABELS: Mapping[str, str] = MappingProxyType(
    {
        "bleu": "BLEU",
        "nist": "NIST",
        "meteor": "METEOR",
        "rouge_l_coco": "ROUGE-L (COCO)",
        "cider": "CIDEr",
        "ter": "TER",
        "rouge1": "ROUGE-1",
        "rouge2": "ROUGE-2",
        "rougeL": "ROUGE-L",
        "bertscore": "BERTScore",
    }
)
"""Name → what people call it. All go from 0 to 100 but NIST and CIDEr; a low TER is good."""

TASKS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "e2e": ("bleu", "nist", "meteor", "rouge_l_coco", "cider"),
        "webnlg": ("bleu", "meteor", "ter"),
        "dart": ("bleu", "meteor", "ter"),
        "xsum": ("rouge1", "rouge2", "rougeL"),
        "all": tuple(LABELS),
    }
)
"""The metrics that Li & Liang (2021) report for each task, so far as they need no model."""

BEAMS: Mapping[str, int] = MappingProxyType({"e2e": 5, "webnlg": 5, "dart": 5, "xsum": 6})
"""The paper's number of beams for each task."""

DEFAULT = ("bleu", "rouge1", "rouge2", "rougeL")
_WORD = re.compile(r"\w+|[^\w\s]")
_ROUGE = ("rouge1", "rouge2", "rougeL")
_COCO: Mapping[str, Callable[[coco.Tokenised], Statistics]] = MappingProxyType(
    {
        "rouge_l_coco": coco.rouge_l_statistics,
        "cider": coco.cider_statistics,
        "meteor": coco.meteor_statistics,
    }
)


@dataclass(frozen=True)
class Scores:
    """Statistics of the metrics that could be computed, and why others were left out."""

    statistics: Mapping[str, Statistics]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def rounded(self) -> dict[str, float]:
        """Scores by name, with two places; NIST and CIDEr, which are small, with four."""
        return {
            name: round(each.score, 4 if name in ("nist", "cider") else 2)
            for name, each in self.statistics.items()
        }


def metric_names(text: str) -> tuple[str, ...]:
    """From `e2e`, another task, or names with commas between. InvalidRequest if one is unknown."""
    names: dict[str, None] = {}
    for part in (part.strip() for part in text.split(",")):
        if part not in TASKS and part not in LABELS:
            raise InvalidRequest(
                f"--metrics: '{part}' is unknown; give a task ({', '.join(TASKS)}) or metrics"
                f" ({', '.join(LABELS)})"
            )
        names |= dict.fromkeys(TASKS.get(part, (part,)))
    return tuple(names)


def score_texts(
    texts: Sequence[str],
    references: Sequence[Sequence[str]],
    names: Sequence[str],
    bert_model: Path | None = None,
    bert_layers: int = 0,
) -> Scores:
    """Scores of `texts` by the metrics `names`, against all references of each.

    `bert_layers` is the layer of BERTScore's model whose states count (0: the last one). A metric
    whose program, library or model is missing is left out, with the reason.
    """
    if not texts or len(texts) != len(references):
        raise InvalidRequest("scores need as many lists of references as texts, and at least one")
    found: dict[str, Statistics] = {}
    left_out: dict[str, str] = {}
    makers: list[tuple[tuple[str, ...], Callable[[], Mapping[str, Statistics]]]] = [
        (("bleu",), lambda: {"bleu": bleu_statistics(texts, references)}),
        (("nist",), lambda: {"nist": nist_statistics(texts, references)}),
        (tuple(_COCO), lambda: _coco(texts, references, names)),
        (("ter",), lambda: {"ter": ter_statistics(texts, references)}),
        (_ROUGE, lambda: rouge_statistics(texts, references)),
        (("bertscore",), lambda: {"bertscore": _bert(texts, references, bert_model, bert_layers)}),
    ]
    for made, make in makers:
        wanted = [name for name in made if name in names]
        if not wanted:
            continue
        try:
            statistics = make()
        except Unavailable as error:
            left_out |= dict.fromkeys(wanted, error.message)
        else:
            found |= {name: statistics[name] for name in wanted}
    return Scores({name: found[name] for name in names if name in found}, left_out)


def bleu_statistics(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Statistics:
    """BLEU by sacrebleu, as `metrics.corpus_bleu`: lower-cased, 13a tokens."""
    metric = BLEU(lowercase=True, tokenize="13a", effective_order=True)
    rows = []
    for text, of_text in zip(texts, references, strict=True):
        one = metric.sentence_score(text, list(of_text))
        rows.append([*one.counts, *one.totals, one.sys_len, one.ref_len])
    return Statistics(np.array(rows, dtype=np.float64), _bleus)


def ter_statistics(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Statistics:
    """Translation edit rate by sacrebleu, in percent; low is good.

    Of lower-cased words, with every punctuation mark a word of its own, as the WebNLG challenge's
    script splits texts for tercom.
    """
    metric = TER()
    scores = [
        metric.sentence_score(_split(text), [_split(each) for each in of_text])
        for text, of_text in zip(texts, references, strict=True)
    ]
    rows = np.array([(one.num_edits, one.ref_length) for one in scores], dtype=np.float64)
    return Statistics(rows, lambda sums: np.asarray(100 * sums[:, 0] / sums[:, 1]))


def _split(text: str) -> str:
    return " ".join(_WORD.findall(text))


def rouge_statistics(
    texts: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, Statistics]:
    """ROUGE-1, -2 and -L by `rouge-score`, as `metrics.mean_rouge`."""
    scorer = RougeScorer(_ROUGE, use_stemmer=True)
    scores = [scorer.score_multi(list(of), t) for t, of in zip(texts, references, strict=True)]
    return {name: mean_of([100 * each[name].fmeasure for each in scores]) for name in _ROUGE}


def _bleus(sums: Floats) -> Floats:
    scores = [
        BLEU.compute_bleu(
            correct=row[:4].astype(int).tolist(),
            total=row[4:8].astype(int).tolist(),
            sys_len=int(row[8]),
            ref_len=int(row[9]),
            smooth_method="exp",
        ).score
        for row in sums
    ]
    return np.array(scores, dtype=np.float64)


def _coco(
    texts: Sequence[str], references: Sequence[Sequence[str]], names: Sequence[str]
) -> dict[str, Statistics]:
    tokenised = coco.tokenise(texts, references)
    return {name: make(tokenised) for name, make in _COCO.items() if name in names}


def _bert(
    texts: Sequence[str], references: Sequence[Sequence[str]], model: Path | None, layers: int
) -> Statistics:
    """BERTScore's F1, 0 to 100, against the best reference."""
    if model is None:
        raise Unavailable("BERTScore needs a model; give its folder with --bertscore-model")
    try:
        from bert_score import BERTScorer
    except ImportError as error:
        raise Unavailable(
            "the library `bert-score` is missing; install it with `pip install bert-score`"
        ) from error
    used = layers or _num_layers(model)
    try:
        scorer = BERTScorer(model_type=str(model), num_layers=used, lang="en")
        _, _, f1 = scorer.score(list(texts), [list(of) for of in references])
    except Exception as error:  # a model that the library cannot use makes it raise anything
        raise Unavailable(f"BERTScore failed with {model}: {error!r}") from error
    return mean_of([100 * float(value) for value in f1])


def _num_layers(model: Path) -> int:
    """The number of the last layer, by the folder's config.

    bert-score itself knows the best layer of models by their hub names, but not of folders.
    """
    config = model / "config.json"
    try:
        layers = json.loads(config.read_text(encoding="utf-8"))["num_hidden_layers"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Unavailable(
            f"BERTScore needs the folder of a model: {config} does not say num_hidden_layers"
        ) from error
    return int(layers)
