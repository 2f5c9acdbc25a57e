"""One training run from files to a prefix: data, trainer, scores, provenance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from app.datasets.example import Example
from app.datasets.hugging_face import is_saved_dataset
from app.datasets.reader import ReadOptions, data_digest, read_examples
from app.datasets.splits import Selection
from app.errors import InvalidRequest
from app.evaluation.evaluator import EngineRunner, Evaluation, evaluate, running_engine
from app.evaluation.text_pairs import TokenPair, default_template
from app.model.frozen import FrozenModel
from app.model.load import load_model
from app.prefix.composition import compose
from app.prefix.prefix import Prefix
from app.training.batches import pairs_behind, sample
from app.training.choices import Choices
from app.training.data_advice import data_advice, warn_of_specials
from app.training.groups.limits import RunLimits
from app.training.initial import complete_recipe, read_prefix
from app.training.methods.files import TrainedFile
from app.training.methods.method import State
from app.training.methods.names import (
    FROZEN_METHODS,
    METHOD_TITLES,
    PREFIX_METHODS,
    WEIGHT_METHODS,
)
from app.training.methods.tuned import TunedModel, check_inputs, tuned_model
from app.training.objective import offset_behind, position_offset
from app.training.progress import Outcome, Report
from app.training.publish import as_prefix
from app.training.recipe import Recipe
from app.training.trainer import Trainer


@dataclass(frozen=True)
class TrainingJob:
    """The input of a training run. `decoding` becomes the prefix's defaults.

    `template` None means the authors' template for a model of this family. `on` is the file of a
    prefix that stands before the trained one and does not change; its template is used. `choices`
    is a file with the rates and lengths that were chosen for base models (see `Choices`).
    `selection` is the part of `data` to train on; what it holds out validates
    where `valid` is None. `reading` says how both files are read; `valid_split` is another split
    for `valid`. `limits` bound a run that others wait for.
    """

    model: str
    data: Path
    recipe: Recipe
    checkpoint: Path
    valid: Path | None = None
    template: str | None = None
    decoding: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    checkpoint_every: int = 200
    note: str | None = None
    on: Path | None = None
    selection: Selection = Selection()
    choices: Path | None = None
    reading: ReadOptions = ReadOptions()
    valid_split: str | None = None
    limits: RunLimits | None = None


class Session:
    """A running job: call `train`, optionally `score`, then `prefix`."""

    def __init__(
        self,
        job: TrainingJob,
        model: FrozenModel | None = None,
        *,
        runner: Callable[[], EngineRunner] | None = None,
        between: Callable[[], None] = lambda: None,
    ) -> None:
        """Read the data and load the model. Raises InvalidRequest if one of them is unusable.

        `model` is one that `load_base` has returned; several sessions may share it, since prefix
        methods never change it. `runner` gives a started engine on it, for validations; otherwise
        each starts one. `between` is as for `Trainer`.
        """
        job.recipe.check()
        self._job, self._runner = job, runner
        self.examples, held = job.selection.split(read_examples(job.data, job.reading))
        self.validation = held if job.valid is None else _read_valid(job, job.valid)
        if model is not None:
            _check_shared(model, job.recipe)
        self.model = model or load_base(job.model, job.recipe, job.device)
        has_encoder = self.model.encoder_decoder is not None
        self.on = None if job.on is None else read_prefix(job.on, self.model)
        given = _template(job.template, self.on)
        self.template = given or default_template(self.model.text, has_encoder=has_encoder)
        warn_of_specials(self.model.text, self.template)
        num_pairs = sum(len(example.targets) for example in self.examples)
        recipe = job.recipe
        if job.choices is not None:
            recipe = Choices(job.choices).of(self.model.spec.fingerprint).apply(recipe)
        held_out = sum(len(example.targets) for example in self.validation)
        recipe = complete_recipe(self.model, recipe, num_pairs, has_validation=held_out > 0)
        if job.limits is not None:
            recipe = job.limits.apply(self.model, recipe, num_pairs, held_out)
        self._length = 0 if recipe.method in WEIGHT_METHODS else recipe.length or 0
        self.pairs = self.pairs_of(self.examples, job.data)
        valid_pairs = []
        if self.validation:
            check_inputs(recipe.metric, self.validation, str(job.valid or job.data))
            valid_pairs = self.pairs_of(self.validation, job.valid or job.data)
        self._digests = {
            "data": data_digest(job.data),
            "valid": data_digest(job.valid) if job.valid is not None else None,
        }
        self.trainer = Trainer(
            self.model,
            self.pairs,
            recipe,
            validation=valid_pairs,
            checkpoint=job.checkpoint,
            checkpoint_every=job.checkpoint_every,
            identity=self._identity(),
            score=self._measure if recipe.metric != "loss" and self.validation else None,
            on=self.on,
            between=between,
        )
        if job.limits is not None:
            job.limits.check_tokens(self.trainer, self.pairs)

    def _identity(self) -> str:
        """What a checkpoint must have been trained on to be continued."""
        job = self._job
        reading = [each for each in (job.reading.as_dict(), job.valid_split) if each]
        return ":".join(map(str, [*self._digests.values(), job.selection, *reading, self.template]))

    @property
    def recipe(self) -> Recipe:
        """The job's recipe, completed for the model."""
        return self.trainer.recipe

    def train(self, report: Callable[[Report], None]) -> None:
        """Train to the end. The checkpoint remains; the caller discards it."""
        self.trainer.initialise()
        self.trainer.run(report)

    def prefix(self, scores: Mapping[str, Any]) -> Prefix:
        """The trained prefix; its provenance includes `scores`."""
        return as_prefix(
            self.trainer.result(),
            self.model,
            position_offset=position_offset(self.model, self._length),
            template=self.template,
            decoding=self._job.decoding,
            provenance=self._provenance(scores),
        )

    @property
    def prepared_tokens(self) -> int:
        """Tokens that were read before training: none."""
        return 0

    @property
    def gives_prefix(self) -> bool:
        """Whether the method's result is a prefix, which `prefix` returns; else `trained` does."""
        return self.recipe.method in PREFIX_METHODS

    def trained(self, scores: Mapping[str, Any]) -> TrainedFile:
        """What a method that gives no prefix has learned; its provenance includes `scores`."""
        return TrainedFile(
            self.recipe.method,
            self.trainer.state(),
            base_fingerprint=self.model.spec.fingerprint,
            base_model=self.model.spec.model_id,
            input_template=self.template,
            decoding=self._job.decoding,
            recipe=self.recipe.as_dict(),
            provenance=self._provenance(scores),
        )

    @property
    def _task_decoding(self) -> Mapping[str, Any]:
        return {} if self.on is None else self.on.metadata.decoding

    def _measure(self, state: State) -> float:
        """The metric on held-out inputs in the middle of the run; weights are the model's own.

        As many inputs are answered as pairs validate, drawn by the seed.
        """
        count = self.recipe.validation_pairs or len(self.validation)
        if self._job.limits is not None:
            count = min(count, self._job.limits.validation_answers)
        inputs = sample(self._scored, count, self.recipe.seed)
        decoding = {**self._job.decoding, **self._task_decoding}
        method = self.recipe.method
        tuned = TunedModel(self.model, method, state, self.template, decoding, self.on)
        runner = None if self._runner is None else self._runner()
        return tuned.score(inputs, self.recipe.metric, runner)

    def advice(self) -> list[str]:
        """What the owner of the data should know before the run; empty if all is well."""
        decoding = {**self._job.decoding, **self._task_decoding}
        room = self._source_room
        return data_advice(self.examples, self.pairs, self.validation, decoding, source_room=room)

    @property
    def _source_room(self) -> int | None:
        """Tokens of an input that an encoder reads; None without an encoder."""
        return self.model.source_room(self._job.recipe.max_source)

    def outcome(self, runner: EngineRunner | None = None) -> Outcome:
        """What the run has reached, with the scores of `score`."""
        base, tuned = self.score(runner) or (None, None)
        inputs = None
        if self._job.limits is not None and self.validation:
            inputs = len(self._scored), len(self.validation)
        return Outcome(self.trainer.progress(), self.trainer.best_loss, base, tuned, inputs)

    @property
    def _scored(self) -> list[Example]:
        """The held-out inputs that are answered at the end."""
        limits = self._job.limits
        if limits is None:
            return self.validation
        return limits.choose_scored(self.validation, self.recipe.seed)

    def score(self, runner: EngineRunner | None = None) -> tuple[Evaluation, Evaluation] | None:
        """Scores of the progress' `baseline` and with the prefix; None without validation data.

        `runner` is for a method that leaves the model as it is: it has a started engine on the
        session's model. Without it, the model is loaded once more, in single precision.
        """
        if not self.validation:
            return None
        job = self._job
        if runner is not None:
            return self._scores(runner)
        plain = load_model(job.model, device=job.device, dtype="float32")
        with running_engine(plain) as engine:
            if self.recipe.method in FROZEN_METHODS:
                return self._scores(EngineRunner(engine))
            base = evaluate(engine, self._scored, template=self.template, decoding=job.decoding)
        return base, self.tuned().evaluate(self._scored)

    def tuned(self, dtype: str = "float32") -> TunedModel:
        """A fresh base model in `dtype` with what a method that gives no prefix has learned."""
        job, packed = self._job, self.recipe.method not in WEIGHT_METHODS
        plain = load_model(job.model, device=job.device, dtype=dtype, packed=packed)
        return tuned_model(plain, self.trained({}), job.checkpoint)

    def _scores(self, runner: EngineRunner) -> tuple[Evaluation, Evaluation]:
        """Scores without and with what was trained, on the runner's engine."""
        model, on, scored = runner.engine.model, self.on, self._scored
        base = evaluate(
            runner.engine,
            scored,
            prefix=None if on is None else on.to(model.device, model.dtype),
            template=self.template,
            decoding={**self._job.decoding, **self._task_decoding},
            runner=runner,
        )
        if not self.gives_prefix:
            tuned = tuned_model(model, self.trained({}), self._job.checkpoint)
            return base, tuned.evaluate(scored, runner=runner)
        prefix = self.prefix({})
        whole = prefix if on is None else compose([on, prefix])
        whole = whole.to(model.device, model.dtype)
        return base, evaluate(runner.engine, scored, prefix=whole, runner=runner)

    def pairs_of(self, examples: Sequence[Example], source: Path | None = None) -> list[TokenPair]:
        """Inputs and targets as this run reads them; `source` is the file that errors name."""
        return pairs_behind(
            self.model,
            examples,
            self.template,
            offset=offset_behind(self.model, self.on, self._length),
            source_room=self._source_room,
            source=str(source),
        )

    def _provenance(self, scores: Mapping[str, Any]) -> dict[str, Any]:
        job = self._job
        provenance = {
            "method": METHOD_TITLES[self.recipe.method],
            "recipe": self.recipe.as_dict(),
            "steps": self.trainer.step,
            "trained_parameters": sum(p.numel() for p in self.trainer.parameters.values()),
            "data": {
                "name": job.data.name,
                "sha256": self._digests["data"],
                "inputs": len(self.examples),
                "pairs": len(self.pairs),
                **job.reading.as_dict(),
                **job.selection.as_dict(),
            },
            "scores": dict(scores),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        if job.valid is not None:
            provenance["validation"] = {
                "name": job.valid.name,
                "sha256": self._digests["valid"],
                "inputs": len(self.validation),
                **({"split": job.valid_split} if job.valid_split is not None else {}),
            }
        if self.on is not None:
            provenance["on"] = {"digest": self.on.digest}
        if job.note:
            provenance["note"] = job.note
        return provenance


def load_base(model: str, recipe: Recipe, device: str) -> FrozenModel:
    """The base model `model` as the recipe's method needs it: its dtype, and packed if frozen."""
    frozen = recipe.method not in WEIGHT_METHODS
    dtype = "bfloat16" if recipe.dtype == "bf16" and frozen else "float32"
    return load_model(model, device=device, dtype=dtype, packed=frozen)


def _check_shared(model: FrozenModel, recipe: Recipe) -> None:
    """Raise InvalidRequest unless runs of this recipe may share `model`."""
    if recipe.method in WEIGHT_METHODS:
        raise InvalidRequest(f"method: {recipe.method} changes the base model, which is shared")
    if (recipe.dtype == "bf16") != (model.dtype == torch.bfloat16):
        has = str(model.dtype).removeprefix("torch.")
        raise InvalidRequest(f"dtype: the shared base model is in {has}, not in {recipe.dtype}")


def _read_valid(job: TrainingJob, path: Path) -> list[Example]:
    """The held-out examples of a job; a file without splits has none of the training data's."""
    inherited = job.reading.split if is_saved_dataset(path) else None
    split = inherited if job.valid_split is None else job.valid_split
    return read_examples(path, replace(job.reading, split=split))


def _template(given: str | None, on: Prefix | None) -> str | None:
    """The template of the composition, which a server takes from the first prefix that has one."""
    of_task = None if on is None else on.metadata.input_template
    if of_task is None or given in (None, of_task):
        return of_task or given
    raise InvalidRequest(
        f"template: behind the prefix to train on, requests have its own template {of_task!r};"
        " leave it out"
    )
