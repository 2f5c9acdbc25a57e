"""One distillation from a text file to a prefix: parts, exchanges, teacher, training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app.errors import InvalidRequest
from app.evaluation.evaluator import EngineRunner
from app.model.dense import keys_values_of
from app.model.frozen import FrozenModel
from app.model.load import load_model
from app.prefix.prefix import Prefix
from app.training.checkpoint import load_checkpoint, run_identity
from app.training.distillation.document import check_tokens, read_document, split_document
from app.training.distillation.exchanges import ExchangeSettings
from app.training.distillation.framing import framing_of
from app.training.distillation.method import DistillationMethod
from app.training.distillation.start import start_ids
from app.training.distillation.teacher import (
    TOP_TOKENS,
    PrepareReport,
    TaughtPair,
    made_pairs,
    pairs_as_tensors,
    pairs_of_tensors,
    split_pairs,
)
from app.training.groups.limits import RunLimits
from app.training.initial import complete_recipe
from app.training.objective import position_offset
from app.training.progress import Outcome, Report
from app.training.publish import as_prefix
from app.training.recipe import Recipe
from app.training.trainer import Trainer

LENGTH = 64
"""Length of a distilled prefix if none is given."""
METHOD = "prefix-direct"
"""What of the trainer's methods a distilled prefix is: keys and values trained directly."""
TITLE = "context distillation (Cartridges, arXiv 2506.06266), keys and values trained directly"
_MAX_PART = 1024
_MIN_PART = 32
_OVERLAP_SHARE = 8
_EXCHANGES = 256
_EXCHANGES_OF_PART = 32
_EPOCHS = 4
_LR = 2e-2
_BATCH = 8
_WARMUP = 5
_EXCHANGE_SHARE = 8


@dataclass(frozen=True)
class DistillationJob:
    """The input of a distillation. `decoding` becomes the prefix's defaults.

    `recipe` gives length, steps, rate and seed; its method is `METHOD`. `exchanges` 0: as many as
    the text's parts need. `part` 0: as many tokens as fit into the context, up to 1024.
    `max_answer` 0: 48 tokens, or an eighth of a small context. `template` and `context` None: the
    templates of `app.training.distillation.framing`. `limits` bound a run that others wait for.
    """

    model: str
    text: Path
    recipe: Recipe
    checkpoint: Path
    exchanges: int = 0
    part: int = 0
    max_answer: int = 0
    start: str = "first"
    template: str | None = None
    context: str | None = None
    decoding: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    checkpoint_every: int = 50
    note: str | None = None
    limits: RunLimits | None = None


class DistillationOutcome(Outcome):
    """The divergence from the teacher on held-out exchanges, in nats per token."""

    @property
    def scores(self) -> dict[str, Any]:
        """As JSON values: `base` is without any context, `first` that of the start."""
        progress = self.progress
        divergence = {"first": progress.first, "last": progress.last, "base": progress.base}
        return {"divergence": divergence, "exchanges": progress.pairs}


class DistillationSession:
    """A running distillation: call `prepare`, then `train`, then `prefix`.

    `pairs` are the exchanges with the teacher's distributions, once it is prepared.
    """

    def __init__(self, job: DistillationJob, model: FrozenModel | None = None) -> None:
        """Read the text, load the model unless it is given, and cut the text into parts.

        Raises InvalidRequest if text, length and model do not fit each other.
        """
        self._job = job
        self._recipe = replace(job.recipe, method=METHOD, length=job.recipe.length or LENGTH)
        self._recipe.check()
        if job.limits is not None:
            job.limits.check_text(job.text.stat().st_size)
        self.document = read_document(job.text)
        dtype = "bfloat16" if job.recipe.dtype == "bf16" else "float32"
        self.model = model or load_model(job.model, device=job.device, dtype=dtype)
        if self.model.encoder_decoder is not None:
            raise InvalidRequest(
                "distillation needs a model without an encoder: an encoder reads text and question"
                " together; use a GPT-2 or Llama-family base model"
            )
        encoder = self.model.text
        self.framing = framing_of(encoder, job.template, job.context)
        self._settings = self._exchange_settings()
        size = self._part_size()
        self.parts = split_document(
            self.document.text, encoder, size=size, overlap=size // _OVERLAP_SHARE
        )
        self._token_ids = tuple(encoder.encode(self.document.text, add_special_tokens=False))
        self._check_length()
        self._settings = replace(self._settings, count=self._count_exchanges())
        self._trainer: Trainer | None = None
        self.pairs: Sequence[TaughtPair] = ()

    @property
    def recipe(self) -> Recipe:
        """The job's recipe, completed for the model once the session is prepared."""
        return self._recipe if self._trainer is None else self._trainer.recipe

    @property
    def trainer(self) -> Trainer:
        """The trainer. Raises InvalidRequest before `prepare`."""
        if self._trainer is None:
            raise InvalidRequest("this distillation is not prepared yet; call prepare first")
        return self._trainer

    @property
    def prepared_tokens(self) -> int:
        """Tokens of the exchanges that were made, which the teacher has read."""
        return sum(map(len, self.pairs))

    @property
    def gives_prefix(self) -> bool:
        """Whether the result is a prefix: always."""
        return True

    def prepare(
        self,
        report: PrepareReport,
        *,
        resume: bool = True,
        pairs: Sequence[TaughtPair] | None = None,
    ) -> bool:
        """Make the exchanges and the teacher's distributions, and the trainer; return whether
        training continues from a checkpoint.

        With `resume`, an interrupted run's checkpoint gives them all. The checkpoint of another run
        is refused with InvalidRequest. `pairs` are those of another session about the same text.
        """
        saved = self._saved_pairs() if resume else None
        continued = saved is not None
        self.pairs = (
            saved
            or pairs
            or made_pairs(self.model, self.framing, self.parts, self._settings, report)
        )
        self._trainer = trainer = self._make_trainer(self.pairs)
        if continued and not trainer.resume():
            raise InvalidRequest(f"{self._job.checkpoint} was removed while it was read")
        if not continued:
            trainer.initialise()
            trainer.save()
        return continued

    def train(self, report: Callable[[Report], None]) -> None:
        """Train to the end. The checkpoint remains; the caller discards it."""
        self.trainer.run(report)

    def prefix(self, scores: Mapping[str, Any]) -> Prefix:
        """The distilled prefix; its provenance includes `scores`, and no word of the text."""
        length = self._recipe.positions
        return as_prefix(
            self.trainer.result(),
            self.model,
            position_offset=position_offset(self.model, length),
            template=self.framing.prompt,
            decoding=self._job.decoding,
            provenance=self._provenance(scores),
        )

    def advice(self) -> list[str]:
        """What the owner of the text should know before the run; empty if all is well."""
        if 2 * len(self.pairs) >= self._settings.count:
            return []
        return [
            f"The model wrote only {len(self.pairs)} different exchanges about the text, of"
            f" {self._settings.count}: the text is short, or the model repeats itself."
        ]

    def outcome(self, _runner: EngineRunner | None = None) -> DistillationOutcome:
        """What the run has reached on held-out exchanges; nothing is decoded for it."""
        return DistillationOutcome(self.trainer.progress(), self.trainer.best_loss)

    def start_ids(self) -> tuple[int, ...]:
        """The tokens whose keys and values the prefix starts from."""
        return start_ids(
            self.framing,
            self.model.text,
            self._token_ids,
            self._recipe.positions,
            self._job.start,
        )

    def _exchange_settings(self) -> ExchangeSettings:
        """Prompts and answers take at most an eighth of the context each."""
        usual, share = ExchangeSettings(count=1), self.model.spec.context_limit // _EXCHANGE_SHARE
        return replace(
            usual,
            max_prompt=min(usual.max_prompt, share),
            max_answer=min(self._job.max_answer or usual.max_answer, share),
            seed=self._recipe.seed,
        )

    def _count_exchanges(self) -> int:
        asked, limits, parts = self._job.exchanges, self._job.limits, len(self.parts)
        usual = max(_EXCHANGES, _EXCHANGES_OF_PART * parts)
        return asked or usual if limits is None else limits.count_exchanges(asked, usual, parts)

    def _part_size(self) -> int:
        """Tokens of a part: what the context leaves beside frame, question and answer."""
        settings, limit = self._settings, self.model.spec.context_limit
        frame = sum(map(len, self.framing.frame_ids(self.model.text)))
        # questions about long sentences are twice as long as other prompts
        room = limit - frame - 2 * settings.max_prompt - settings.max_answer
        if room < _MIN_PART:
            raise InvalidRequest(
                f"the model's context of {limit} positions leaves {room} for a part of the text;"
                f" distillation needs {_MIN_PART}"
            )
        if self._job.part > room:
            raise InvalidRequest(
                f"part: the model's context of {limit} positions leaves {room} for a part of the"
                f" text, not {self._job.part}"
            )
        if 0 < self._job.part < _MIN_PART:
            raise InvalidRequest(f"part must be at least {_MIN_PART} tokens")
        return self._job.part or min(room, _MAX_PART)

    def _check_length(self) -> None:
        length, limit = self._recipe.positions, self.model.spec.context_limit
        settings, found = self._settings, len(self._token_ids)
        room = limit - settings.max_prompt - settings.max_answer
        if length > room:
            raise InvalidRequest(
                f"a prefix of {length} leaves no room for questions in a model with {limit}"
                f" positions; give a length of at most {room}"
            )
        check_tokens(self.document.name, found, length)

    def _identity(self) -> str:
        job = self._job
        facts = (self.document.sha256, self.framing, self._settings, job.part, job.start)
        return ":".join(map(str, facts))

    def _saved_pairs(self) -> list[TaughtPair] | None:
        path = self._job.checkpoint
        if not path.exists():
            return None
        saved = load_checkpoint(path)
        if saved.state.get("identity") != run_identity(self.model, self._identity()):
            raise InvalidRequest(
                f"{path} belongs to another run (base model, text or settings differ); remove it or"
                " start again without resuming"
            )
        return pairs_of_tensors(saved.tensors_of("carried"))

    def _make_trainer(self, pairs: Sequence[TaughtPair]) -> Trainer:
        training, held_out = split_pairs(pairs, self._recipe.seed)
        given = self._recipe
        given = replace(
            given,
            lr=given.lr or _LR,
            batch_size=given.batch_size or _BATCH,
            warmup_steps=_WARMUP if given.warmup_steps is None else given.warmup_steps,
            epochs=given.epochs or (None if given.max_steps else _EPOCHS),
        )
        recipe = complete_recipe(self.model, given, len(training))
        limits = self._job.limits
        if limits is not None:
            recipe = limits.apply(self.model, recipe, len(training), len(held_out))
        start = keys_values_of(self.model, self.start_ids())
        trainer = Trainer(
            self.model,
            training,
            recipe,
            validation=held_out,
            checkpoint=self._job.checkpoint,
            checkpoint_every=self._job.checkpoint_every,
            identity=self._identity(),
            method=DistillationMethod(self.model, recipe, {"decoder": start}),
            carried=pairs_as_tensors(pairs),
        )
        if limits is not None:
            limits.check_tokens(trainer, training)
        return trainer

    def _provenance(self, scores: Mapping[str, Any]) -> dict[str, Any]:
        job, trainer = self._job, self.trainer
        provenance = {
            "method": TITLE,
            "recipe": trainer.recipe.as_dict(),
            "steps": trainer.step,
            "trained_parameters": sum(p.numel() for p in trainer.parameters.values()),
            "text": {
                "sha256": self.document.sha256,
                "tokens": len(self._token_ids),
                "parts": len(self.parts),
            },
            "teacher": {
                "base_model": self.model.spec.model_id,
                "context": self.framing.context,
                "top_tokens": TOP_TOKENS,
            },
            "exchanges": asdict(self._settings),
            "start": job.start,
            "scores": dict(scores),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        if job.note:
            provenance["note"] = job.note
        return provenance
