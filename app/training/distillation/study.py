"""Measures distilled prefixes beside no context, a cut text and the whole text in the context.

`python -m app.training.distillation.study --help` says how to run it. A row of the CSV file is
written as soon as it is measured.
"""

from __future__ import annotations

import argparse
import csv
import logging
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch

from app.engine.engine import Engine
from app.engine.offline import complete
from app.engine.request import GenerationRequest, SamplingParams
from app.evaluation.evaluator import OFFLINE, running_engine
from app.model.dense import keys_values_of
from app.model.load import load_model
from app.prefix.prefix import KeyValues, Prefix, PrefixMetadata
from app.training.distillation.exchanges import TextExchange
from app.training.distillation.method import divergence_of
from app.training.distillation.session import DistillationJob, DistillationSession
from app.training.distillation.start import STARTS
from app.training.distillation.study_texts import TEXTS, StudyText
from app.training.distillation.teacher import TaughtPair, taught_pairs
from app.training.objective import mean_loss, prefixed_rows
from app.training.progress import Report
from app.training.recipe import Recipe
from app.training.words import words_prefix

_log = logging.getLogger(__name__)

_ANSWER_TOKENS = 24
_TIMED_QUESTIONS = 5
_TIMED_TOKENS = 16


@dataclass(frozen=True)
class TextRow:
    """One way to give the model a text, measured on the questions about it.

    `positions` are those of the text's keys and values, `nbytes` their size in half precision.
    `kl` is KL(whole text in the context ‖ this) in nats per token of the whole context's own
    answers, over the whole vocabulary. `right` of `questions` answers hold the exact answer.
    `seconds` is the median processor time of one question alone, with its prompt and 16 new tokens.
    `trained_seconds`, processor time too, excludes making the exchanges.
    """

    text: str
    text_tokens: int
    system: str
    positions: int
    nbytes: int
    kl: float
    right: int
    questions: int
    seconds: float
    steps: int = 0
    lr: float = 0.0
    exchanges: int = 0
    trained_seconds: float = 0.0


class TextStudy:
    """One text with its questions on a base model; the engine decodes with every system."""

    def __init__(self, text: StudyText, session: DistillationSession, engine: Engine) -> None:
        self._text, self._session, self._engine = text, session, engine
        self._model, self._framing = session.model, session.framing
        encoder = self._model.text
        self._prompts = [
            tuple(encoder.render(self._framing.prompt, question)) for question, _ in text.questions
        ]
        part = session.parts[0]
        self._context = self._framing.context_ids(encoder, part.token_ids)
        self._tokens = len(part.token_ids)
        whole = words_prefix(
            self._model, self._context, PrefixMetadata(position_offset=len(self._context))
        ).to(self._model.device, self._model.dtype)
        answers = self._complete(self._prompts, whole, _ANSWER_TOKENS)
        exchanges = [
            TextExchange(0, "question", prompt, tuple(ids))
            for prompt, (_, ids) in zip(self._prompts, answers, strict=True)
        ]
        vocabulary = int(self._model.hf.config.vocab_size)
        self._held_out = taught_pairs(
            self._model,
            self._framing,
            session.parts,
            exchanges,
            lambda *_: None,
            top_tokens=vocabulary - 1,
        )

    def whole_context(self) -> TextRow:
        """The whole text in every prompt, as a user without prefixes would send it."""
        prompts = [self._context + prompt for prompt in self._prompts]
        made = keys_values_of(self._model, self._context)
        return self._measure("whole text in the prompt", prompts, None, made)

    def no_context(self) -> TextRow:
        """The questions alone."""
        return self._measure("no context", self._prompts, None, None)

    def behind(self, system: str, prefix: Prefix) -> TextRow:
        """The questions behind a prefix, in the serving dtype."""
        served = prefix.to(self._model.device, self._model.dtype)
        return self._measure(system, self._prompts, served, served.decoder)

    def _measure(
        self,
        system: str,
        prompts: Sequence[tuple[int, ...]],
        prefix: Prefix | None,
        made: KeyValues | None,
    ) -> TextRow:
        answers = self._complete(prompts, prefix, _ANSWER_TOKENS)
        for (question, right), (said, _) in zip(self._text.questions, answers, strict=True):
            _log.info("%s | %s | %s | %r", system, question, right, said)
        texts = [said for said, _ in answers]
        positions = 0 if made is None else made.length
        nbytes = 0 if made is None else 2 * (made.keys.numel() + made.values.numel())
        return TextRow(
            self._text.name,
            self._tokens,
            system,
            positions,
            nbytes,
            # -0.0 becomes 0.0
            round(self._divergence({} if made is None else {"decoder": made}), 4) + 0.0,
            self._text.score(texts),
            len(texts),
            round(self._seconds(prompts, prefix), 3),
        )

    @torch.no_grad()
    def _divergence(self, modules: dict[str, KeyValues]) -> float:
        def loss(pairs: Sequence[TaughtPair]) -> object:
            return divergence_of(self._model, prefixed_rows(self._model, modules, pairs))

        return mean_loss(loss, self._held_out)  # type: ignore[arg-type]

    def _seconds(self, prompts: Sequence[tuple[int, ...]], prefix: Prefix | None) -> float:
        times = []
        for prompt in prompts[:_TIMED_QUESTIONS]:
            start = time.process_time()
            self._complete([prompt], prefix, _TIMED_TOKENS, ignore_eos=True)
            times.append(time.process_time() - start)
        return statistics.median(times)

    def _complete(
        self,
        prompts: Sequence[tuple[int, ...]],
        prefix: Prefix | None,
        max_tokens: int,
        *,
        ignore_eos: bool = False,
    ) -> list[tuple[str, list[int]]]:
        requests = [
            GenerationRequest(
                id=f"study-{number}",
                tenant="study",
                prompt_ids=prompt,
                sampling=SamplingParams(max_tokens=max_tokens, ignore_eos=ignore_eos),
                prefixes=() if prefix is None else (prefix,),
                whole=True,
            )
            for number, prompt in enumerate(prompts)
        ]
        done = complete(self._engine, requests)
        return [(one.texts[0], one.token_ids[0]) for one in done]


def run(options: argparse.Namespace) -> None:
    """Measure each text with each length and append the rows to the CSV file."""
    torch.set_num_threads(options.threads)
    model = load_model(options.model, device="cpu", dtype="float32")
    sources = {"facts": options.webnlg, "speech": options.speeches}
    config = replace(OFFLINE, max_prefix_length=model.spec.context_limit)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.texts:
            text, pairs = TEXTS[name](sources[name]), None
            place = Path(folder) / f"{name}.txt"
            place.write_text(text.text, encoding="utf-8")
            for length in options.lengths:
                job = _job(options, place, length)
                session = DistillationSession(job, model)
                begun = time.process_time()
                session.prepare(_say, resume=False, pairs=pairs)
                _log.info("%d exchanges, %.0f s", len(session.pairs), time.process_time() - begun)
                with running_engine(model, config) as engine:
                    study = TextStudy(text, session, engine)
                    if pairs is None:
                        _write(options.out, study.no_context())
                        _write(options.out, study.whole_context())
                    pairs = session.pairs
                    ids = session.start_ids()
                    cut = words_prefix(model, ids, PrefixMetadata(position_offset=len(ids)))
                    _write(options.out, study.behind("from-text, cut", cut))
                    begun = time.process_time()
                    session.train(_report)
                    trained = time.process_time() - begun
                    row = study.behind("distilled", session.prefix({}))
                _write(options.out, _with_training(row, session, trained))


def _job(options: argparse.Namespace, place: Path, length: int) -> DistillationJob:
    recipe = Recipe(
        length=length,
        max_steps=options.steps,
        batch_size=options.batch_size,
        lr=options.lr,
        validate_every=max(1, options.steps // 4),
    )
    return DistillationJob(
        options.model,
        place,
        recipe,
        place.with_suffix(f".{length}"),
        exchanges=options.exchanges,
        max_answer=options.max_answer,
        start=options.start,
    )


def _with_training(row: TextRow, session: DistillationSession, seconds: float) -> TextRow:
    return replace(
        row,
        steps=session.trainer.step,
        lr=session.recipe.lr or 0.0,
        exchanges=len(session.pairs),
        trained_seconds=round(seconds, 1),
    )


def _write(path: Path, row: TextRow) -> None:
    """Append a row; a new file begins with the names of the columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(TextRow)])
        if is_new:
            writer.writeheader()
        writer.writerow(asdict(row))


def _say(what: str, done: int, total: int) -> None:
    _log.info("%s: %d of %d", what, done, total)


def _report(done: Report) -> None:
    _say(f"loss {done.loss:.3f}, held out {done.validation_loss}", done.step, done.total)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder of SmolLM2, or another base model")
    parser.add_argument("--webnlg", type=Path, help="WebNLG's development data, JSON lines")
    parser.add_argument("--speeches", type=Path, help="the US presidents' addresses, as text")
    parser.add_argument("--texts", nargs="+", choices=tuple(TEXTS), default=list(TEXTS))
    parser.add_argument("--lengths", nargs="+", type=int, default=[16, 64, 128])
    parser.add_argument("--exchanges", type=int, default=48)
    parser.add_argument("--max-answer", type=int, default=24)
    parser.add_argument("--start", choices=STARTS, default="first")
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--lr", type=float, default=2e-2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("results.csv"))
    return parser.parse_args()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    run(_options())
