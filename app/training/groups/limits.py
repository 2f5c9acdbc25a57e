"""What one run may ask for where others train beside it: bounds on steps, memory and scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from app.datasets.example import Example
from app.errors import InvalidRequest
from app.evaluation.text_pairs import TokenPair
from app.model.frozen import FrozenModel
from app.training.batches import sample
from app.training.methods.choose import count_parameters
from app.training.recipe import Recipe
from app.training.trainer import Trainer

_BYTES_PER_PARAMETER = 16
"""Of a parameter, its gradient and the optimiser's two moments, in single precision."""
_SHARE_OF_MODEL = 4
_USUAL_ROWS = 8
_PAIRS_PER_ANSWER = 4
"""Writing an answer takes about as long as reading so many pairs."""


@dataclass(frozen=True)
class RunLimits:
    """The most that a run may take; the defaults are those of jobs.

    `step_pairs` and `step_tokens` bound an optimiser step, `pass_tokens` a pass through the model
    that no other run shares; both bounds of tokens leave room for eight rows of the full context.
    `validation_pairs` and `validation_answers` (inputs that are answered for a metric) bound a
    validation. `scored_inputs`, each with `references` outputs and all with `reference_words`
    words, bound the scores at the end. `trained_bytes` bounds the parameters, their gradients and
    the optimiser's moments; a quarter of the base model's bytes is allowed too. `text_bytes` and
    `exchanges` bound a distillation.
    """

    step_pairs: int = 512
    step_tokens: int = 32_768
    pass_tokens: int = 8_192
    validation_pairs: int = 1024
    validation_answers: int = 128
    scored_inputs: int = 256
    references: int = 64
    reference_words: int = 250_000
    trained_bytes: int = 1 << 30
    text_bytes: int = 1 << 20
    exchanges: int = 2048

    def apply(
        self, model: FrozenModel, recipe: Recipe, num_pairs: int, num_validation: int
    ) -> Recipe:
        """A complete recipe with these limits, for so many pairs; InvalidRequest if it breaks one.

        A recipe that validates after each epoch does so after several, if a validation would take
        more pairs than the steps before it.
        """
        self.check_step(recipe)
        self._check_memory(model, recipe)
        validated = self._validated(recipe, num_validation)
        rows = (recipe.batch_size or 1) * recipe.accumulate
        least = math.ceil(validated / rows)
        if 0 < recipe.validate_every < least:
            raise InvalidRequest(
                f"validate_every: a validation takes as long as {validated} pairs here and a step"
                f" {rows}, so validate after {least} steps or more, not {recipe.validate_every}; or"
                " lower validation_pairs"
            )
        epoch = recipe.steps_per_epoch(num_pairs)
        if recipe.validate_every or epoch >= least:
            return recipe
        return replace(recipe, validate_every=epoch * math.ceil(least / epoch))

    def check_step(self, recipe: Recipe) -> None:
        """InvalidRequest if a step takes too many pairs."""
        rows = (recipe.batch_size or 1) * recipe.accumulate
        if rows > self.step_pairs:
            raise InvalidRequest(
                f"batch_size: a step of a job takes at most {self.step_pairs} pairs, because other"
                f" jobs wait for it, not {rows}; lower batch_size or accumulate"
            )

    def check_tokens(self, trainer: Trainer, pairs: Sequence[TokenPair]) -> None:
        """InvalidRequest if a step of the run may take too many tokens of these pairs."""
        recipe, usual = trainer.recipe, _USUAL_ROWS * trainer.model.spec.context_limit
        rows, most = (recipe.batch_size or 1) * recipe.accumulate, max(self.step_tokens, usual)
        what = "step"
        if not trainer.shares_passes and recipe.accumulate == 1:
            most, what = max(self.pass_tokens, usual), "step that other jobs cannot share"
        lengths = sorted((len(pair) for pair in pairs), reverse=True)
        tokens = sum(lengths[:rows])
        if tokens > most:
            fitting = max(1, sum(total <= most for total in accumulate(lengths)))
            raise InvalidRequest(
                f"batch_size: a {what} takes at most {most} tokens, and {rows} pairs of the file"
                f" may have {tokens}; {fitting} pairs always fit: lower batch_size or accumulate,"
                " or cut long examples"
            )

    def check_text(self, nbytes: int) -> None:
        """InvalidRequest if a text is too large to be distilled."""
        if nbytes > self.text_bytes:
            raise InvalidRequest(
                f"training_file: a job distils a text of at most {self.text_bytes} bytes, not"
                f" {nbytes}; split it and make a job of each piece",
                param="training_file",
            )

    def count_exchanges(self, asked: int, usual: int, num_parts: int) -> int:
        """How many exchanges are made: `asked` for, or `usual` if that is 0.

        InvalidRequest if that are too many; each part takes at least one.
        """
        if asked > self.exchanges:
            raise InvalidRequest(
                f"exchanges: a job makes at most {self.exchanges}, not {asked}; give fewer"
            )
        if num_parts > self.exchanges:
            raise InvalidRequest(
                f"part: the text has {num_parts} parts, each of which takes an exchange, and a job"
                f" makes at most {self.exchanges}; give a larger part, or split the text"
            )
        return asked or min(usual, self.exchanges)

    def choose_scored(self, examples: Sequence[Example], seed: int) -> list[Example]:
        """The inputs that are answered and scored at the end, drawn by the seed."""
        chosen = [
            replace(each, targets=each.targets[: self.references])
            for each in sample(examples, self.scored_inputs, seed)
        ]
        words = accumulate(sum(len(text.split()) for text in each.targets) for each in chosen)
        fitting = [
            each for each, total in zip(chosen, words, strict=True) if total <= self.reference_words
        ]
        return fitting or chosen[:1]

    def _validated(self, recipe: Recipe, num_validation: int) -> int:
        """How many pairs take as long as a validation; InvalidRequest if it takes too many."""
        pairs = min(recipe.validation_pairs or num_validation, num_validation)
        if max(pairs, recipe.validation_pairs) > self.validation_pairs:
            raise InvalidRequest(
                f"validation_pairs: a validation of a job takes at most {self.validation_pairs}"
                f" pairs, not {max(pairs, recipe.validation_pairs)}; give a lower number"
            )
        if recipe.metric != "loss":
            pairs += _PAIRS_PER_ANSWER * min(pairs, self.validation_answers)
        return pairs

    def _check_memory(self, model: FrozenModel, recipe: Recipe) -> None:
        count = count_parameters(model, recipe)
        most = max(self.trained_bytes, 4 * model.num_parameters // _SHARE_OF_MODEL)
        if count * _BYTES_PER_PARAMETER > most:
            direct = recipe.method == "prefix-direct"
            names = ["length"] if direct else ["hidden", "depth", "length"]
            raise InvalidRequest(
                f"{names[0]}: this job would train {count} parameters, which takes"
                f" {_gib(count * _BYTES_PER_PARAMETER)} GiB with gradients and moments, and a job"
                f" takes at most {_gib(most)} GiB; lower {' or '.join(names)}"
            )


def _gib(nbytes: int) -> str:
    return f"{nbytes / (1 << 30):.1f}"
