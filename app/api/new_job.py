"""From the body of a request to what a training job is to do: checked before it is queued."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import Any

from app.api.generation.prefix_selection import PrefixSelector
from app.api.schemas.base import StrictBody
from app.api.schemas.training import (
    DISTILL,
    INFIX,
    SUPERVISED,
    Hyperparameters,
    JobBody,
    MethodBody,
    PrefixHyperparameters,
)
from app.errors import BaseModelMismatch, InvalidRequest, PolyprefixError, PrefixNotFound
from app.jobs.erasure import check_user
from app.jobs.types import TEXT, JobSpec, TrainingFile
from app.model.frozen import FrozenModel
from app.prefix.reference import check_alias
from app.training.distillation.document import check_tokens, decode_text
from app.training.distillation.session import LENGTH as DISTILLED_LENGTH
from app.training.groups.limits import RunLimits
from app.training.initial import complete_recipe
from app.training.recipe import Recipe

SHORT_TEXT = 1 << 16
"""Bytes of a text whose tokens are counted before its job is queued."""
_AUTO = "auto"
_RENAMED = {"n_epochs": "epochs"}
"""What OpenAI calls otherwise than the recipe."""
_MULTIPLIER = "learning_rate_multiplier"


@dataclass(frozen=True)
class Behind:
    """The version that a prefix is trained behind: `name@digest` or `tenant/name@digest`.

    `length` counts its positions, in the module that has the most.
    """

    reference: str
    length: int


@dataclass(frozen=True)
class JobReader:
    """Makes specs of bodies, for one base model; `selector` finds the prefixes that they name.

    `max_length` bounds the positions of a prefix here, `limits` what else a job may take.
    """

    model: FrozenModel
    selector: PrefixSelector
    max_length: int
    limits: RunLimits = RunLimits()

    def check_model(self, body: JobBody) -> None:
        """InvalidRequest unless the body names the base model, which alone is trained on."""
        base = self.model.spec.model_id
        if body.model != base:
            raise InvalidRequest(
                f"model: jobs train a prefix for the base model, {base!r}; to train one behind "
                'another prefix, say `"on": "name@alias"` besides',
                param="model",
            )

    async def resolve_on(self, tenant: str, body: JobBody) -> Behind | None:
        """The version behind which is trained.

        PrefixNotFound, InvalidRequest or BaseModelMismatch, which name `on`.
        """
        if body.on is None:
            return None
        method = MethodBody(type=SUPERVISED) if body.method is None else body.method
        if method.type in (DISTILL, INFIX):
            raise InvalidRequest(
                f"on: the method {method.type} does not train behind another prefix", param="on"
            )
        try:
            first, *more = self.selector.parse(body.on)
            if more:
                raise InvalidRequest("give one prefix, not several")
            found = await self.selector.resolve(tenant, first, body.user)
            version = await self.selector.version(found)
        except (InvalidRequest, PrefixNotFound, BaseModelMismatch) as error:
            raise type(error)(f"on: {error.message}", param="on") from error
        owner = "" if found.tenant == tenant else f"{found.tenant}/"
        length = max(version.length, *(version.lengths or {}).values(), 0)
        return Behind(f"{owner}{found.name}@{found.digest}", length)

    def make_spec(
        self,
        body: JobBody,
        on: Behind | None,
        file: TrainingFile,
        validation: TrainingFile | None = None,
    ) -> JobSpec:
        """What the job is to do; InvalidRequest names the setting that cannot be.

        The settings are completed for this base model and the files' pairs once, to see that they
        can be; the job keeps what was asked.
        """
        if body.alias is not None:
            check_alias(body.alias)
        if body.user is not None:
            check_user(body.user)
        method = body.method or MethodBody(type=SUPERVISED)
        if method.type == INFIX and body.alias is not None:
            raise InvalidRequest(
                "alias: an infix is no prefix, so no alias names it; leave it out", param="alias"
            )
        if method.type == DISTILL and self.model.encoder_decoder is not None:
            raise InvalidRequest(
                "method: a text is distilled for base models without an encoder alone",
                param="method",
            )
        settings = method.hyperparameters
        if body.method is not None and body.hyperparameters is not None:
            raise InvalidRequest(
                "hyperparameters: give the settings inside `method`", param="hyperparameters"
            )
        if body.method is None and body.hyperparameters is not None:
            settings = body.hyperparameters
        asked = settings.model_dump(exclude_unset=True)
        seed = Recipe().seed if body.seed is None else body.seed
        name = "prefix" if method.type == SUPERVISED else method.type
        spec = self.model.spec
        return JobSpec(
            base_model=spec.model_id,
            base_fingerprint=spec.fingerprint,
            method=name,
            suffix=body.suffix or f"ft-{secrets.token_hex(4)}",
            training_file=body.training_file,
            validation_file=body.validation_file,
            hyperparameters=self._hyperparameters(name, settings, seed, file, validation, on),
            asked={name: value for name, value in asked.items() if value not in (None, _AUTO)},
            seed=seed,
            on=None if on is None else on.reference,
            alias=body.alias,
            user=body.user,
            metadata=body.metadata,
        )

    def check_text(self, spec: JobSpec, file: TrainingFile, data: bytes) -> None:
        """InvalidRequest if a text to distil is too short; one beyond `SHORT_TEXT` bytes is not."""
        length = spec.hyperparameters.get("length", DISTILLED_LENGTH)
        try:
            text = decode_text(file.filename, data)
            found = self.model.text.encode(text, add_special_tokens=False)
            check_tokens(file.filename, len(found), length)
        except InvalidRequest as error:
            raise InvalidRequest(error.message, param="training_file") from error

    def _hyperparameters(
        self,
        method: str,
        settings: StrictBody,
        seed: int,
        file: TrainingFile,
        validation: TrainingFile | None,
        on: Behind | None,
    ) -> dict[str, Any]:
        """The settings that were given, as the recipe of the method calls them."""
        given = settings.model_dump(exclude_unset=True)
        given = {name: value for name, value in given.items() if value not in (None, _AUTO)}
        multiplier = given.pop(_MULTIPLIER, None)
        named = {_RENAMED.get(name, name): value for name, value in given.items()}
        if not isinstance(settings, Hyperparameters):
            self._check_distillation(named, file)
            return named
        recipe = replace(Recipe(method=method, seed=seed), **_as_recipe(named))
        pairs, held_out = max(1, file.pairs), 0 if validation is None else validation.pairs
        try:
            self._check_length(recipe.length or 0, on)
            complete = complete_recipe(self.model, recipe, pairs, has_validation=held_out > 0)
            complete.check_validation(has_data=held_out > 0, has_score=held_out > 0)
            complete.check_start(is_behind=on is not None)
            self._check_length(complete.positions, on)
            self.limits.apply(self.model, complete, pairs, held_out)
        except PolyprefixError as error:
            where = "method" if isinstance(settings, PrefixHyperparameters) else "hyperparameters"
            if error.param is not None:
                where = f"method.{method}.hyperparameters.{error.param}"
            raise InvalidRequest(error.message, param=where) from error
        if multiplier is not None:
            if "lr" in named:
                raise InvalidRequest(f"give lr or {_MULTIPLIER}, not both", param="method")
            named["lr"] = (complete.lr or 0.0) * multiplier
        return named

    def _check_distillation(self, named: dict[str, Any], file: TrainingFile) -> None:
        try:
            self._check_length(named.get("length", 0))
            self.limits.check_step(Recipe(batch_size=named.get("batch_size")))
            self.limits.count_exchanges(named.get("exchanges", 0), 0, 1)
        except InvalidRequest as error:
            raise InvalidRequest(error.message, param="method") from error
        if file.purpose == TEXT:
            self.limits.check_text(file.nbytes)

    def _check_length(self, length: int, on: Behind | None = None) -> None:
        behind = 0 if on is None else on.length
        if length + behind > self.max_length:
            beside = f" behind the {behind} of {on.reference.split('@')[0]}" if on else ""
            raise InvalidRequest(
                f"length: prefixes have at most {self.max_length} positions here together, not"
                f" {length}{beside}"
            )


def _as_recipe(named: dict[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in named.items()
    }
