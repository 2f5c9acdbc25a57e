"""How near texts come to their references: BLEU and ROUGE, by the libraries that papers quote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from app.errors import InvalidRequest

_ROUGE = ("rouge1", "rouge2", "rougeL")


@dataclass(frozen=True)
class Rouge:
    """Mean F1 of single words, of pairs of words and of the longest common sequence, 0 to 100."""

    rouge1: float = 0.0
    rouge2: float = 0.0
    rougeL: float = 0.0

    def rounded(self) -> dict[str, float]:
        """The three by name, with two places, for reports."""
        return {name: round(value, 2) for name, value in asdict(self).items()}


def corpus_bleu(texts: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, str]:
    """BLEU as E2E's and DART's own scorers compute it (lower-cased, 13a tokens), and its signature.

    The number of references may differ from text to text.
    """
    _check(texts, references)
    metric = BLEU(lowercase=True, tokenize="13a")
    score = metric.corpus_score(list(texts), _streams(references))
    return float(score.score), str(metric.get_signature())


def bleu_signature(references: Sequence[Sequence[str]]) -> str:
    """sacrebleu's signature of BLEU with these references."""
    return corpus_bleu([of_text[0] for of_text in references], references)[1]


def _streams(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """The first references of all texts, then the second ones, as sacrebleu takes them."""
    most = max(len(of_text) for of_text in references)
    return [
        [of_text[number] if number < len(of_text) else None for of_text in references]
        for number in range(most)
    ]


def mean_rouge(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Rouge:
    """ROUGE-1, -2 and -L of stemmed words as XSum's are reported, by Google's `rouge-score`.

    Each text is compared with the reference that is best for it, in each of the three.
    """
    _check(texts, references)
    scorer = RougeScorer(_ROUGE, use_stemmer=True)
    found = [
        scorer.score_multi(list(of_text), text)
        for text, of_text in zip(texts, references, strict=True)
    ]
    return Rouge(*(100 * fmean(scores[name].fmeasure for scores in found) for name in _ROUGE))


def _check(texts: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if not texts or len(texts) != len(references):
        raise InvalidRequest("scores need as many lists of references as texts, and at least one")
