"""Runs one training run of an experiment and scores it on the test inputs, with one engine."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from app.datasets.example import Example
from app.engine.engine import Engine
from app.errors import InvalidRequest
from app.evaluation.evaluator import decode_texts, running_engine
from app.evaluation.scores import score_texts
from app.evaluation.systems import table_slots
from app.experiments.data import (
    ExperimentData,
    development_split,
    low_data_split,
    write_examples,
)
from app.experiments.plan import RunSettings
from app.experiments.results import RunResult
from app.model.frozen import FrozenModel
from app.model.load import load_model
from app.training.objective import target_losses
from app.training.progress import Report
from app.training.recipe import Recipe
from app.training.session import Session, TrainingJob

_log = logging.getLogger(__name__)

_CHECKPOINT_EVERY = 50
_TRIAL_STEPS = 3
_TRIAL_INPUTS = 4
_TRIAL = "trial"
_BAN = -1e6
"""Added to the log-probability of a token that no answer has."""
_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True)
class RunPace:
    """How long work takes on this machine, in seconds: a trained pair, a decoded input, a load."""

    pair: float
    decoded: float
    load: float


Answers = Callable[[Sequence[Example]], Sequence[str]]
"""What a trained model says to examples."""


def _answers(session: Session, engine: Engine) -> Answers:
    """What was trained, ready to answer: a prefix on `engine`, else a model of its own.

    It reads as much of a source as in training.
    """
    room = session.recipe.max_source
    if session.gives_prefix:
        used = session.prefix({}).to(engine.model.device, engine.model.dtype)
        return lambda examples: decode_texts(engine, examples, prefix=used, max_source=room)
    tuned = session.tuned(str(engine.model.dtype).removeprefix("torch."))
    return lambda examples: tuned.texts([each.input for each in examples], max_source=room)


class Executor:
    """Does the runs of one experiment: a model, its data and a folder for files of the work."""

    def __init__(
        self,
        model: str,
        data: ExperimentData,
        folder: Path,
        *,
        engine: Engine,
        decoding: Mapping[str, Any],
        metrics: Sequence[str],
        device: str,
        parameters: int,
        is_tested: bool,
        max_source: int,
        banned: Sequence[str],
    ) -> None:
        self._name = model
        self._data = data
        self._digest = data.digest()
        self._folder = folder
        self._engine = engine
        self._decoding = {**decoding, **_bans(engine.model, banned)}
        self._device = device
        self._metrics = tuple(metrics)
        # packed layers hold their weights elsewhere, so the plain model says how many there are
        self._size = parameters
        self._is_tested = is_tested
        has_encoder = engine.model.encoder_decoder is not None
        self._max_source = max_source if has_encoder else 0

    @property
    def model(self) -> FrozenModel:
        """The base model as the engine runs it."""
        return self._engine.model

    def default_lr(self) -> float:
        """The rate that training takes for this model if nobody gives one."""
        recipe = Recipe().for_model(self.model.spec.modules, self._size, self._data.num_pairs)
        return recipe.lr or 0.0

    def run_digest(self, settings: RunSettings) -> str:
        """The name of a run on this model and these data; the version of the code is no part."""
        context: dict[str, Any] = {
            "model": self.model.spec.fingerprint,
            "data": self._digest,
            "decoding": self._decoding,
            "metrics": self._metrics,
        }
        if self._max_source:
            context["max_source"] = self._max_source
        return settings.digest(context)

    def run(self, settings: RunSettings, report: Callable[[Report], None]) -> RunResult:
        """Train and score. A run that was interrupted continues from its checkpoint."""
        session = self._session(settings, self.run_digest(settings))
        _resume(session)
        began = time.monotonic()
        session.train(report)
        trained = time.monotonic()
        scores = self._scores(session) if self._is_tested else {}
        decoded = time.monotonic()
        progress = session.trainer.progress()
        recipe = session.recipe
        result = replace(
            self.unfinished(settings),
            lr=recipe.lr,
            batch_size=recipe.batch_size,
            steps=session.trainer.total,
            trained=sum(values.numel() for values in session.trainer.state().values()),
            train_seconds=trained - began,
            decode_seconds=decoded - trained,
            base_loss=progress.base,
            first_loss=progress.first,
            last_loss=progress.last,
            development_loss=self._development_loss(session, settings),
            scores=scores,
        )
        session.trainer.discard_checkpoint()
        return result

    def unfinished(self, settings: RunSettings, error: str = "") -> RunResult:
        """The row of a run without measurements; `error` says why it failed."""
        spec = self.model.spec
        return RunResult(
            run=self.run_digest(settings),
            experiment=settings.experiment,
            model=spec.model_id,
            fingerprint=spec.fingerprint,
            method=settings.method,
            length=settings.length,
            words=settings.words or "",
            data_size=self._num_pairs(settings),
            subset_seed=settings.subset_seed,
            seed=settings.seed,
            lr=settings.lr,
            test_inputs=len(self._data.test) + len(self._data.unseen),
            version=version("polyprefix"),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            error=error,
        )

    def measure_pace(self, settings: RunSettings) -> RunPace:
        """Time a few steps of a run and a few decoded inputs, for an estimate."""
        began = time.monotonic()
        session = self._session(settings, _TRIAL)
        loaded = time.monotonic()
        ends: list[float] = []
        steps = min(_TRIAL_STEPS, session.trainer.total)
        session.trainer.run(lambda _: ends.append(time.monotonic()), until=steps)
        session.trainer.discard_checkpoint()
        per_step = (ends[-1] - ends[0]) / (steps - 1) if steps > 1 else ends[0] - loaded
        few = self._data.test[:_TRIAL_INPUTS]
        before = time.monotonic()
        _answers(session, self._engine)(few)
        return RunPace(
            pair=per_step / (session.recipe.batch_size or 1),
            decoded=(time.monotonic() - before) / len(few),
            load=loaded - began,
        )

    def estimate(self, settings: RunSettings, pace: RunPace) -> float:
        """About how many seconds a run takes at that pace."""
        pairs = self._num_pairs(settings)
        recipe = settings.recipe().for_model(self.model.spec.modules, self._size, pairs)
        trained = recipe.total_steps(pairs) * (recipe.batch_size or 1) * pace.pair
        inputs = len(self._data.test) + len(self._data.unseen)
        return trained + inputs * pace.decoded + pace.load

    def _session(self, settings: RunSettings, name: str) -> Session:
        train, development = self._split(settings)
        job = TrainingJob(
            self._name,
            train,
            replace(settings.recipe(), max_source=self._max_source),
            self._folder / f"{name}.checkpoint",
            development,
            decoding=self._decoding,
            device=self._device,
            checkpoint_every=_CHECKPOINT_EVERY,
        )
        return Session(job)

    def _split(self, settings: RunSettings) -> tuple[Path, Path | None]:
        """The files of the run's training pairs and of the pairs that choose its best state."""
        size, held = settings.data_size, settings.development
        if not size:
            name = f"all-{held}-{settings.subset_seed}" if held else "all"
            return self._written(name, self._whole(settings)[0]), None
        train, development = low_data_split(self._data.train, size, held, settings.subset_seed)
        name = f"{size}-{held}-{settings.subset_seed}"
        valid = self._written(f"{name}-development", development) if development else None
        return self._written(name, train), valid

    def _whole(self, settings: RunSettings) -> tuple[Sequence[Example], Sequence[Example]]:
        """All that there is to train on, without the inputs for development; and these."""
        if not settings.development:
            return self._data.train, ()
        return development_split(self._data.train, settings.development, settings.subset_seed)

    def _num_pairs(self, settings: RunSettings) -> int:
        """Pairs of input and target that the run trains on."""
        if settings.data_size:
            return settings.data_size
        return sum(len(example.targets) for example in self._whole(settings)[0])

    def _development_loss(self, session: Session, settings: RunSettings) -> float | None:
        """Of the best state where development pairs choose it, else of the last state."""
        held = () if settings.data_size else self._whole(settings)[1]
        if not held:
            return session.trainer.best_loss
        model, pairs = session.model, session.pairs_of(held)
        prefix = session.prefix({}).to(model.device, model.dtype)
        tokens = sum(len(pair.target_ids) for pair in pairs)
        count = len(pairs) if model.encoder_decoder is None else tokens
        return sum(target_losses(model, prefix, pairs)) / count

    def _written(self, name: str, examples: Sequence[Example]) -> Path:
        path = self._folder / "data" / f"{self._digest[:8]}-{name}.jsonl"
        return path if path.exists() else write_examples(path, examples)

    def _scores(self, session: Session) -> dict[str, float]:
        answers = _answers(session, self._engine)
        scores = self._scored(self._data.test, answers)
        if self._data.unseen:
            unseen = self._scored(self._data.unseen, answers)
            scores |= {f"unseen_{name}": value for name, value in unseen.items()}
        return scores

    def _scored(self, examples: Sequence[Example], answers: Answers) -> dict[str, float]:
        texts = answers(examples)
        scored = score_texts(texts, [each.targets for each in examples], self._metrics)
        for name, reason in scored.left_out.items():
            _log.warning("%s is left out: %s", name, reason)
        found = {name: each.score for name, each in scored.statistics.items()}
        slots = table_slots(examples, texts)
        if slots is not None:
            found |= {
                "slot_errors": slots.error_rate,
                "slots_all_right": slots.share_all_right,
            }
        return found


def dtype_named(name: str) -> str:
    """The name itself. InvalidRequest if there is no such dtype."""
    if name not in _DTYPES:
        raise InvalidRequest(f"there is no dtype '{name}'; give `fp32` or `bf16`")
    return name


@contextmanager
def executor(
    model: str,
    data: ExperimentData,
    folder: Path,
    *,
    decoding: Mapping[str, Any],
    metrics: Sequence[str],
    device: str,
    dtype: str = "fp32",
    is_tested: bool = True,
    max_source: int = 0,
    banned: Sequence[str] = (),
) -> Iterator[Executor]:
    """An executor with a started engine in `dtype`, `fp32` or `bf16`, until the end of the block.

    `is_tested`: whether runs are scored on the test inputs. `max_source`: tokens of a source that
    an encoder reads (0: as many as it can). `banned`: texts of single tokens that no answer has.
    """
    parameters = _count_parameters(model, device)
    products = _DTYPES[dtype]
    with running_engine(load_model(model, device=device, dtype=products)) as engine:
        yield Executor(
            model,
            data,
            folder,
            engine=engine,
            decoding=decoding,
            metrics=metrics,
            device=device,
            parameters=parameters,
            is_tested=is_tested,
            max_source=max_source,
            banned=banned,
        )


def _bans(model: FrozenModel, texts: Sequence[str]) -> Mapping[str, Any]:
    """The decoding option that forbids the tokens with these texts, as far as there are such."""
    rendered = [model.text.render("{input}", text) for text in texts]
    biases = {token_ids[0]: _BAN for token_ids in rendered if len(token_ids) == 1}
    return {"logit_bias": biases} if biases else {}


def _count_parameters(model: str, device: str) -> int:
    """Of the plain model, which is freed again."""
    plain = load_model(model, device=device, dtype="float32", packed=False)
    return sum(weight.numel() for weight in plain.hf.parameters())


def _resume(session: Session) -> None:
    """Continue from the checkpoint if it is of this run; one of an older version is dropped."""
    try:
        session.trainer.resume()
    except InvalidRequest as error:
        _log.warning("the run starts again: %s", error.message)
        session.trainer.discard_checkpoint()
