"""METEOR 1.5, COCO's ROUGE-L and CIDEr, as the E2E challenge's scorer computes them.

The library `pycocoevalcap` brings the algorithms; its two programs in Java are run here, because
its own wrappers depend on the locale and write into the library's folder.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from app.errors import Unavailable
from app.evaluation.statistics import Floats, Statistics, mean_of

_UTF_8 = "-Dfile.encoding=UTF-8"
_SEPARATOR = " ||| "

_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.20, 0.60, 0.75
_MATCHERS = np.array((1.0, 0.6, 0.8, 0.6))
"""Weights of METEOR 1.5's matchers for English: exact, stem, synonym, paraphrase."""

Tokenised = tuple[list[str], list[list[str]]]
"""Texts, and the references of each, as words with blanks between them."""


def tokenise(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Tokenised:
    """Lower-case words without punctuation, by Stanford's PTBTokenizer 3.4.1.

    Raises Unavailable if Java or the library is missing.
    """
    library = _library()
    lines = [_one_line(text) for text in texts]
    lines += [_one_line(text) for of_text in references for text in of_text]
    done = subprocess.run(
        [
            *(_java(), _UTF_8, "-cp", str(library.folder / library.tokenizer_jar)),
            *("edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"),
            *("-encoding", "UTF-8"),
        ],
        input="".join(line + "\n" for line in lines).encode(),
        capture_output=True,
    )
    if done.returncode:
        raise Unavailable(f"the tokenizer failed: {done.stderr.decode(errors='replace')[-500:]}")
    split = done.stdout.decode("utf-8").split("\n")
    words = iter(
        " ".join(word for word in line.split(" ") if word.strip() and word not in library.marks)
        for line in split[: len(lines)]
    )
    return [next(words) for _ in texts], [[next(words) for _ in each] for each in references]


def rouge_l_statistics(tokenised: Tokenised) -> Statistics:
    """COCO's ROUGE-L (beta 1.2; best precision and best recall over the references), 0 to 100."""
    scorer = _library().rouge
    return mean_of([100 * scorer.calc_score([text], of) for text, of in _pairs(tokenised)])


def cider_statistics(tokenised: Tokenised) -> Statistics:
    """CIDEr, 0 to 10; the references of all inputs give the weights of n-grams."""
    texts, references = tokenised
    numbers = range(len(texts))
    _, scores = _library().cider.compute_score(
        {number: references[number] for number in numbers},
        {number: [texts[number]] for number in numbers},
    )
    return mean_of([float(score) for score in scores])


def meteor_statistics(tokenised: Tokenised) -> Statistics:
    """METEOR 1.5 for English, 0 to 100, by its authors' program. Unavailable as above."""
    with _meteor() as program:
        rows = [
            program.ask(_SEPARATOR.join(("SCORE", *map(_field, of), _field(text))))
            for text, of in _pairs(tokenised)
        ]
    return Statistics(np.array([[float(part) for part in row.split()] for row in rows]), _meteors)


def _meteors(sums: Floats) -> Floats:
    """METEOR's formula with its parameters for English (Denkowski and Lavie 2014), 0 to 100.

    A row has the lengths of text and reference, their function words, then for each matcher (exact,
    stem, synonym, paraphrase) the matched content and function words of both; then the number of
    chunks, and all matched words of both.
    """
    lengths, function_words = sums[:, 0:2], sums[:, 2:4]
    by_matcher = sums[:, 4:20].reshape(-1, 4, 2, 2)  # matcher; content, function; text, reference
    chunks, matched = sums[:, 20], sums[:, 21:23]
    content, function = (np.einsum("nmt,m->nt", by_matcher[:, :, k], _MATCHERS) for k in (0, 1))
    matches = _DELTA * content + (1 - _DELTA) * function
    words = _DELTA * (lengths - function_words) + (1 - _DELTA) * function_words
    precision, recall = (matches / np.maximum(words, 1e-12)).T
    total = (1 - _ALPHA) * recall + _ALPHA * precision
    mean = np.where(total > 0, precision * recall / np.where(total > 0, total, 1), 0)
    whole = (matched == lengths).all(axis=1) & (chunks == 1)
    pieces = np.where(whole, 0, chunks / np.maximum(matched.mean(axis=1), 1e-12))
    return np.asarray(100 * mean * (1 - _GAMMA * pieces**_BETA))


class _Meteor:
    """A running program that answers a line with a line."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def ask(self, line: str) -> str:
        """What the program answers; Unavailable if it ended."""
        self._process.stdin.write(f"{line}\n".encode())  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]
        answer: bytes = self._process.stdout.readline()  # type: ignore[union-attr]
        if not answer:
            raise Unavailable("METEOR's program ended without an answer; it needs 2 GB of memory")
        return answer.decode("utf-8").strip()


@contextmanager
def _meteor() -> Iterator[_Meteor]:
    command = (_java(), _UTF_8, "-Xmx2G", "-jar", "meteor-1.5.jar", "-", "-", "-stdio")
    with subprocess.Popen(
        [*command, "-l", "en", "-norm"],
        cwd=_library().folder / "meteor",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield _Meteor(process)
        finally:
            process.kill()


class _Library:
    """What is used of `pycocoevalcap`."""

    def __init__(self) -> None:
        import pycocoevalcap
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
        from pycocoevalcap.tokenizer import ptbtokenizer

        self.folder = Path(pycocoevalcap.__path__[0])
        self.tokenizer_jar = f"tokenizer/{ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR}"
        self.marks = frozenset(ptbtokenizer.PUNCTUATIONS)
        self.cider: Any = Cider()
        self.rouge: Any = Rouge()


def _library() -> _Library:
    try:
        return _Library()
    except ImportError as error:
        raise Unavailable(
            "the library `pycocoevalcap` is missing; install it with"
            " `pip install 'polyprefix[train]'`"
        ) from error


def _java() -> str:
    path = shutil.which("java")
    if path is None:
        raise Unavailable("Java is missing; install a Java runtime, version 8 or later")
    return path


def _pairs(tokenised: Tokenised) -> Iterator[tuple[str, list[str]]]:
    return zip(*tokenised, strict=True)


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())


def _field(text: str) -> str:
    return text.replace("|||", "").replace("  ", " ")
