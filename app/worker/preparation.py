"""From a claimed job to a session that can be trained: its files, its recipe, its checkpoint."""

from __future__ import annotations

import errno
import logging
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from app.db.errors import storage_faults
from app.errors import (
    InsufficientStorage,
    InvalidRequest,
    PolyprefixError,
    PrefixNotFound,
    Unavailable,
)
from app.jobs.types import ClaimedJob, JobSpec
from app.prefix.reference import parse_model_field
from app.training.checkpoint import load_checkpoint, save_checkpoint
from app.training.choices import CHOICES_FILE
from app.training.distillation.session import LENGTH as DISTILLED_LENGTH
from app.training.distillation.session import DistillationJob, DistillationSession
from app.training.methods.names import FROZEN_METHODS
from app.training.recipe import Recipe
from app.training.session import Session, TrainingJob
from app.worker.resources import Resources
from app.worker.scoring import ScoringRunner

_log = logging.getLogger(__name__)

_DEFAULT_MAX_TOKENS = 128
DISTILL = "distill"
"""The method of a job whose training file is one text."""
_DISTILL_RECIPE = ("length", "lr", "batch_size", "epochs", "max_steps", "warmup_steps")
_DISTILL_JOB = ("exchanges", "part", "start")
_UNUSABLE = (InvalidRequest, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a checkpoint raises that is damaged, or of another run or another version of this program.
The same errors of the data or of the settings are raised again by the session without it."""
_STARTS_AGAIN = (
    "The job's checkpoint cannot be used here: it is damaged, or of other settings. The training"
    " starts again."
)
_LOCAL = {"dtype", "initial_prefix"}
"""Settings of a recipe that are the worker's: no job chooses its dtype or names its files."""


def recipe_of(spec: JobSpec, dtype: str) -> Recipe:
    """The recipe of a job on a worker that trains in `dtype`.

    Raises InvalidRequest for settings that no recipe of a job has.
    """
    if spec.method not in FROZEN_METHODS:
        raise InvalidRequest(
            f"method: {spec.method!r} changes the base model, which others use too; methods of jobs"
            f" are {', '.join((*FROZEN_METHODS, DISTILL))}",
            param="method",
        )
    known = {field.name for field in fields(Recipe)} - _LOCAL - {"method", "seed"}
    given = dict(spec.hyperparameters)
    _check_known(given, known)
    listed = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    recipe = Recipe(method=spec.method, seed=spec.seed, dtype=dtype, **{**given, **listed})
    recipe.check()
    return recipe


class Workplace:
    """The folder of one claimed job, with its files under plain names."""

    def __init__(self, root: Path, job: ClaimedJob) -> None:
        self.folder = root / job.token[:16]
        self.training = self.folder / "training_file.jsonl"
        self.text = self.folder / "training_file.txt"
        self.validation = self.folder / "validation_file.jsonl"
        self.checkpoint = self.folder / "checkpoint"
        self.on = self.folder / "on.safetensors"
        self.metrics = self.folder / "step_metrics.csv"
        self._uploads: dict[str, str] = {}

    def make(self) -> None:
        """Make the folder. Raises as `storage_faults`."""
        with storage_faults("making the job's folder"):
            self.folder.mkdir(parents=True, exist_ok=True)

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def call(self, path: Path, filename: str) -> None:
        """From now on messages call this file as its upload is called."""
        same = filename in self._uploads.values()
        self._uploads[path.name] = f"{filename} ({path.stem})" if same else filename

    def told(self, message: str) -> str:
        """A message without this machine's paths: files are called as their uploads are."""
        for folder in (self.folder, self.folder.resolve()):
            message = message.replace(f"{folder}/", "")
        names = "|".join(map(re.escape, self._uploads))
        return re.sub(names, lambda name: self._uploads[name[0]], message) if names else message

    def translate(self, error: PolyprefixError) -> None:
        """The error as the job's owner is told it; `param` names the file that it is about."""
        about = (Path(name).stem for name in self._uploads if name in error.message)
        error.param = error.param or next(about, None)
        error.message = self.told(error.message)


@dataclass(frozen=True)
class PreparedJob:
    """A session that can be trained, and what the job's owner must know of its checkpoint."""

    session: Session | DistillationSession
    warning: str | None = None


def prepare(
    job: ClaimedJob, place: Workplace, resources: Resources, between: Callable[[], None]
) -> PreparedJob:
    """Fetch the job's files and make its session, which goes on from the last checkpoint.

    It does so in the worker's dtype, whatever the checkpoint was computed in. A checkpoint that is
    damaged or of other settings is left: the job starts again, with a warning.
    `between` is called now and then while a text is prepared, and in validations; what it raises
    ends the work. Raises InvalidRequest for data or settings that cannot be trained, NotFound for a
    file that is gone, ClaimLost, and what the catalog and the store raise.
    """
    claims, spec = resources.claims, job.spec
    is_text = spec.method == DISTILL
    training = place.text if is_text else place.training
    place.call(training, claims.read_file(job, "training", training))
    if spec.validation_file is not None and not is_text:
        place.call(place.validation, claims.read_file(job, "validation", place.validation))
    if spec.on is not None:
        _fetch_on(job, place.on, resources)
    make = partial(_distillation_session if is_text else _session, job, place, resources, between)
    if not claims.load_checkpoint(job, place.checkpoint):
        return PreparedJob(make())
    try:
        _change_dtype(place.checkpoint, resources.recipe_dtype)
        return PreparedJob(make(resume=True))
    except _UNUSABLE as error:
        if _is_out_of_memory(error):
            raise
        place.checkpoint.unlink()
        reason = error.message if isinstance(error, PolyprefixError) else repr(error)
        _log.warning("job %s: its checkpoint cannot be used: %s", job.id, reason)
        return PreparedJob(make(), _STARTS_AGAIN)


def _change_dtype(checkpoint: Path, dtype: str) -> None:
    """Let the run of a checkpoint go on in `dtype`: what is trained is fp32 in either."""
    saved = load_checkpoint(checkpoint)
    recipe = saved.state["recipe"]
    if recipe["dtype"] == dtype:
        return
    _log.info("%s was computed in %s and goes on in %s", checkpoint, recipe["dtype"], dtype)
    state = {**saved.state, "recipe": {**recipe, "dtype": dtype}}
    save_checkpoint(checkpoint, saved.tensors, state)


def _session(
    job: ClaimedJob,
    place: Workplace,
    resources: Resources,
    between: Callable[[], None],
    *,
    resume: bool = False,
) -> Session:
    """The session of a file of examples, from the start or from the checkpoint there.

    What the job leaves open is chosen once: the checkpoint has it, wherever the job goes on.
    """
    spec, choices = job.spec, resources.config.folder / CHOICES_FILE
    recipe = recipe_of(spec, resources.recipe_dtype)
    if resume:
        recipe = Recipe.from_dict(load_checkpoint(place.checkpoint).state["recipe"])
    _check_length(recipe, resources.config.max_prefix_length)
    session = Session(
        TrainingJob(
            resources.config.model,
            place.training,
            recipe,
            place.checkpoint,
            place.validation if spec.validation_file is not None else None,
            decoding={"max_tokens": _DEFAULT_MAX_TOKENS},
            device=resources.config.device,
            checkpoint_every=0,  # the worker saves by time
            note=f"trained by job {job.id}",
            on=place.on if spec.on is not None else None,
            choices=choices if choices.exists() and not resume else None,
            limits=resources.limits,
        ),
        resources.model,
        runner=lambda: ScoringRunner(resources.engine, between),
        between=between,
    )
    behind = 0 if session.on is None else max(session.on.lengths.values())
    _check_length(session.recipe, resources.config.max_prefix_length, behind)
    if resume:
        session.trainer.resume()
    return session


def _distillation_session(
    job: ClaimedJob,
    place: Workplace,
    resources: Resources,
    between: Callable[[], None],
    *,
    resume: bool = False,
) -> DistillationSession:
    """The session of a text. Its checkpoint holds the exchanges, which are then not made again."""
    given = dict(job.spec.hyperparameters)
    _check_known(given, {*_DISTILL_RECIPE, *_DISTILL_JOB})
    settings = {name: given.pop(name) for name in _DISTILL_JOB if name in given}
    given = {"length": DISTILLED_LENGTH, **given}
    recipe = Recipe(seed=job.spec.seed, dtype=resources.recipe_dtype, **given)
    _check_length(recipe, resources.config.max_prefix_length)
    session = DistillationSession(
        DistillationJob(
            resources.config.model,
            place.text,
            recipe,
            place.checkpoint,
            decoding={"max_tokens": _DEFAULT_MAX_TOKENS},
            device=resources.config.device,
            checkpoint_every=0,  # the worker saves by time
            note=f"trained by job {job.id}",
            limits=resources.limits,
            **settings,
        ),
        resources.model,
    )
    session.prepare(lambda *_: between(), resume=resume)
    return session


def _check_known(given: Mapping[str, Any], known: Collection[str]) -> None:
    for name in given:
        if name not in known:
            raise InvalidRequest(
                f"hyperparameters: {name!r} is none; there are {', '.join(sorted(known))}",
                param="hyperparameters",
            )


def _check_length(recipe: Recipe, most: int, behind: int = 0) -> None:
    if behind + recipe.positions > most:
        beside = f" behind one of {behind}" if behind else ""
        raise InvalidRequest(
            f"length: a prefix of {recipe.positions} positions{beside} cannot be served here; at"
            f" most {most} are",
            param="hyperparameters",
        )


def _fetch_on(job: ClaimedJob, path: Path, resources: Resources) -> None:
    """Write the version that the job's prefix stands behind to `path`.

    PrefixNotFound if it was deleted, or is not published to the job's tenant any more.
    """
    registry = resources.registry
    (reference,) = parse_model_field(job.spec.on or "")
    try:
        found = registry.resolve(job.tenant, reference)
    except PrefixNotFound as error:
        end = "deleted, or its owner no longer publishes it" if reference.tenant else "deleted"
        raise PrefixNotFound(
            f"on: the prefix {reference} cannot be used any more: it was {end}; make a new job"
            " behind another one",
            param="on",
        ) from error
    version = registry.get_version(found.tenant, found.name, found.digest)
    with registry.open_content(found.tenant, version) as source, path.open("wb") as target:
        shutil.copyfileobj(source, target)


def is_trouble(error: Exception) -> bool:
    """Whether an error is no fault of the job's: of this machine, the store or the catalog.

    Another worker, or this one later, may then go on with the job.
    """
    if isinstance(error, OSError | InsufficientStorage | Unavailable):
        return True
    return type(error) is PolyprefixError and isinstance(error.__cause__, OSError)


def failure(error: Exception, place: Workplace) -> tuple[str, str, str | None]:
    """Code, message and parameter that tell a job's owner why it has failed."""
    if isinstance(error, PolyprefixError):
        place.translate(error)
        return error.code, error.message, error.param
    if isinstance(error, OSError):
        reason = errno.errorcode.get(error.errno or 0, "unknown error")
        return "internal_error", f"a disk of the worker has failed: {reason}", None
    if _is_out_of_memory(error):
        return (
            "out_of_memory",
            "the worker has too little memory for this job; lower batch_size or length, or cut"
            " long examples",
            "hyperparameters",
        )
    return "internal_error", "the job has failed by an error of the worker; its log says more", None


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
