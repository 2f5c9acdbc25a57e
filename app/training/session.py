"""One training run from files to a prefix: data, trainer, scores, provenance."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app.datasets.example import Example
from app.datasets.reader import data_digest, read_examples
from app.errors import InvalidRequest
from app.evaluation.evaluator import Evaluation, evaluate, running_engine
from app.evaluation.text_pairs import (
    TokenPair,
    default_template,
    source_pairs,
    token_pairs,
)
from app.model.load import load_model
from app.model.text import Text
from app.prefix.prefix import Prefix
from app.training.objective import position_offset
from app.training.publish import as_prefix
from app.training.recipe import Recipe
from app.training.trainer import Report, Trainer

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingJob:
    """The input of a training run. `decoding` becomes the prefix's defaults.

    `template` None means the authors' template for a model of this family.
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


class Session:
    """A running job: call `train`, optionally `score`, then `prefix`."""

    def __init__(self, job: TrainingJob) -> None:
        """Read the data and load the model. Raises InvalidRequest if one of them is unusable."""
        job.recipe.check()
        self._job = job
        self.examples = read_examples(job.data)
        self.validation = read_examples(job.valid) if job.valid is not None else []
        self.model = load_model(job.model, device=job.device, dtype="float32")
        has_encoder = self.model.encoder_decoder is not None
        self.template = job.template or default_template(self.model.text, has_encoder=has_encoder)
        _warn_of_specials(self.model.text, self.template)
        self.pairs = self._pairs(self.examples, job.data)
        valid_pairs = self._pairs(self.validation, job.valid) if job.valid is not None else []
        self._digests = {
            "data": data_digest(job.data),
            "valid": data_digest(job.valid) if job.valid is not None else None,
        }
        self.trainer = Trainer(
            self.model,
            self.pairs,
            job.recipe,
            validation=valid_pairs,
            checkpoint=job.checkpoint,
            checkpoint_every=job.checkpoint_every,
            identity=f"{self._digests['data']}:{self._digests['valid']}:{self.template}",
        )

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
            position_offset=position_offset(self.model, self.recipe.length),
            template=self.template,
            decoding=self._job.decoding,
            provenance=self._provenance(scores),
        )

    def score(self) -> tuple[Evaluation, Evaluation] | None:
        """Scores of the base model alone and with the prefix; None without validation data."""
        if not self.validation:
            return None
        plain = load_model(self._job.model, device=self._job.device, dtype="float32")
        prefix = self.prefix({}).to(plain.device, plain.dtype)
        with running_engine(plain) as engine:
            base = evaluate(
                engine,
                self.validation,
                template=self.template,
                decoding=self._job.decoding,
            )
            return base, evaluate(engine, self.validation, prefix=prefix)

    def _pairs(self, examples: list[Example], source: Path | None) -> list[TokenPair]:
        spec = self.model.spec
        offset = position_offset(self.model, self._job.recipe.length)
        room = spec.context_limit - offset
        if room < 2:
            raise InvalidRequest(
                f"a prefix of {offset} leaves no room for text in a model with"
                f" {spec.context_limit} positions"
            )
        text, template = self.model.text, self.template
        if spec.source_limit is None:
            return token_pairs(examples, text, template, room=room, source=str(source))
        return source_pairs(
            examples,
            text,
            template,
            source_room=min(self._job.recipe.max_source or spec.source_limit, spec.source_limit),
            target_room=room,
            first=self.model.generation.frame.forced_first,
            source=str(source),
        )

    def _provenance(self, scores: Mapping[str, Any]) -> dict[str, Any]:
        job = self._job
        provenance = {
            "method": "prefix-tuning (Li & Liang 2021), reparameterised",
            "recipe": self.recipe.as_dict(),
            "steps": self.trainer.total,
            "data": {
                "name": job.data.name,
                "sha256": self._digests["data"],
                "inputs": len(self.examples),
                "pairs": len(self.pairs),
            },
            "scores": dict(scores),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        if job.valid is not None:
            provenance["validation"] = {
                "name": job.valid.name,
                "sha256": self._digests["valid"],
                "inputs": len(self.validation),
            }
        if job.note:
            provenance["note"] = job.note
        return provenance


def _warn_of_specials(text: Text, template: str) -> None:
    for part in text.unknown_specials(template):
        _log.warning(
            "the template's %s is not a special token of this tokenizer, so the model reads it"
            " letter by letter",
            part,
        )
