"""The training loop, for every method: steps, validation, checkpoints.

The model uses the same attention function as in serving. It is in eval mode, except during the
steps of a recipe with `model_dropout`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from app.errors import InvalidRequest
from app.evaluation.text_pairs import TokenPair
from app.model.frozen import FrozenModel
from app.prefix.prefix import KeyValues, Prefix
from app.training.batches import Batches, sample
from app.training.checkpoint import (
    check_finite,
    checkpoint_of_run,
    optimizer_tensors,
    restore_optimizer,
    run_identity,
    save_checkpoint,
)
from app.training.dropping import dropping, has_dropout
from app.training.initial import complete_recipe
from app.training.layer_checkpoints import checkpointed_layers
from app.training.methods.choose import make_method
from app.training.methods.method import Method, State
from app.training.methods.names import PREFIX_METHODS
from app.training.methods.prefix_method import PrefixMethod, modules_of
from app.training.objective import Loss, PrefixedRows, mean_loss
from app.training.progress import Interrupted, Report, RunState, TrainingProgress
from app.training.recipe import Recipe

_SAMPLED = 64
"""Number of pairs on which the progress of a run is measured."""


class Trainer:
    """Trains one method on `pairs`; `validation` decides which state is the best.

    With `checkpoint`, the state is written there every `checkpoint_every` steps and at the end (0:
    only by `save`). `resume` continues from it with bit-identical results. `identity` names the
    data; a checkpoint of other data, another model or another recipe is refused. `score` measures
    the recipe's metric for a state if that is not the loss; higher is better. `on` is a frozen
    prefix that stands before the trained one, as in the composition `task+user`. `method` replaces
    the recipe's own; `carried` are tensors that checkpoints hold too. `between` is called between
    the parts of a validation; if it raises Interrupted there, `settle` validates later.
    """

    def __init__(
        self,
        model: FrozenModel,
        pairs: Sequence[TokenPair],
        recipe: Recipe,
        *,
        validation: Sequence[TokenPair] = (),
        checkpoint: Path | None = None,
        checkpoint_every: int = 200,
        identity: str = "",
        score: Callable[[State], float] | None = None,
        on: Prefix | None = None,
        method: Method | None = None,
        carried: Mapping[str, torch.Tensor] | None = None,
        between: Callable[[], None] = lambda: None,
    ) -> None:
        if not pairs:
            raise InvalidRequest("there are no pairs to train on; the data needs at least one")
        self.model = model
        held = bool(validation)
        self.recipe = recipe = complete_recipe(model, recipe, len(pairs), has_validation=held)
        recipe.check_validation(has_data=held, has_score=score is not None)
        validated = recipe.validation_pairs or len(validation)
        self._validation = sample(validation, validated, recipe.seed)
        self._score, self._between = score, between
        self._checkpoint, self._checkpoint_every = checkpoint, checkpoint_every
        self.identity = run_identity(model, identity, on)
        self._carried = carried or {}
        self._sample = sample(validation or pairs, _SAMPLED, recipe.seed)
        rows = (recipe.batch_size or 1) * recipe.accumulate
        self._batches = Batches(pairs, rows, recipe.seed)
        self.total = recipe.total_steps(len(pairs))
        self._validate_every = recipe.validate_every or recipe.steps_per_epoch(len(pairs))
        self._state = RunState()
        self._best: State | None = None
        self.on = None if on is None else on.to(model.device, torch.float32)
        self._method = method or make_method(model, recipe, self.on)
        self._optimizer = torch.optim.AdamW(
            self.parameters.values(),
            recipe.lr or 0.0,
            betas=(0.9, 0.999),
            eps=1e-8,
            weight_decay=0.0,
            fused=True,
        )

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """What the optimiser changes, by name."""
        return self._method.parameters

    @property
    def best_loss(self) -> float | None:
        """The best state's mean loss so far, on the held-out pairs that select."""
        return self._state.best_loss

    @property
    def step(self) -> int:
        """Number of steps done."""
        return self._state.step

    @property
    def tokens(self) -> int:
        """Tokens of prompts and targets of all steps so far."""
        return self._state.tokens

    @property
    def stopped_early(self) -> bool:
        """Whether the run has ended because validations no longer improved."""
        return self._state.stopped

    @property
    def ended(self) -> bool:
        """Whether no step is left."""
        return self.step >= self.total or self._state.stopped

    @property
    def shares_passes(self) -> bool:
        """Whether a step may be computed in one pass with other runs' steps, with equal results.

        Dropout inside the model depends on all rows of a pass, and the prefix's on the parts of an
        accumulated step.
        """
        recipe = self.recipe
        drops = recipe.model_dropout and has_dropout(self.model)
        parts = recipe.accumulate > 1 and recipe.prefix_dropout > 0
        # a subclass may have another loss
        return type(self._method) is PrefixMethod and not drops and not parts

    def initialise(self) -> float | None:
        """Start from the recipe's words or file, if any; return the remaining squared error."""
        return None if self.step else self._method.initialise(self._between)

    def run(self, report: Callable[[Report], None], *, until: int | None = None) -> None:
        """Train to the end, or to step `until`.

        Raises InvalidRequest, which names the step, if a loss, a gradient or a trained value is
        not finite. Nothing of that step is kept or written.
        """
        last = min(self.total, until if until is not None else self.total)
        while self.step < last and not self.ended:
            done = self.take_step()
            if self.step == last < self.total:
                self.save()
            report(done)

    def take_step(self) -> Report:
        """One step of the run, alone. Raises InvalidRequest as `run` does."""
        pairs = self.begin_step()
        keeps_all = not self.recipe.gradient_checkpointing
        with (
            dropping(self.model, self.recipe, self.step),
            nullcontext() if keeps_all else checkpointed_layers(self.model),
        ):
            loss = self._backward(pairs)
        return self.end_step(loss)

    def begin_step(self) -> Sequence[TokenPair]:
        """The pairs of the next step. Gradients of their loss belong into the parameters.

        A validation that was interrupted comes first. Before the first step, the losses are
        measured that `progress` compares with.
        """
        self.settle()
        if self._state.first_loss is None:
            self._state.base_loss = self._loss_over(self._method.base_loss, self._sample)
            self._state.first_loss = self._loss_over(self._method.loss, self._sample)
            self._check("loss", self._state.base_loss + self._state.first_loss)
        for group in self._optimizer.param_groups:
            group["lr"] = self.recipe.lr_at(self.step, self.total)
        self._optimizer.zero_grad(set_to_none=True)
        return self._batches.at(self.step)

    def rows(self, pairs: Sequence[TokenPair]) -> PrefixedRows:
        """The pairs of a step as rows behind the prefix, for a pass that several runs share.

        Raises InvalidRequest if the method gives no prefix.
        """
        if not isinstance(self._method, PrefixMethod):
            raise InvalidRequest(_gives_none(self.recipe))
        with dropping(self.model, self.recipe, self.step):
            return self._method.rows(pairs)

    def end_step(self, loss: float) -> Report:
        """Change the parameters by their gradients, validate and save if that is due.

        `loss` is that of the step. Raises InvalidRequest as `run` does.
        """
        norm = torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), self.recipe.clip_norm)
        self._check("loss", loss)
        self._check("gradient", norm.item())
        self._optimizer.step()
        tokens = sum(map(len, self._batches.at(self.step)))
        lr = self.recipe.lr_at(self.step, self.total)
        self._state.step += 1
        self._state.tokens += tokens
        self._state.validation_due = (
            self.step % self._validate_every == 0 or self.step == self.total
        )
        measured, score = None, None
        with suppress(Interrupted):
            measured, score = self.settle()
        if self._checkpoint_every and (self.step % self._checkpoint_every == 0 or self.ended):
            self.save()
        return Report(self.step, self.total, loss, lr, measured, score, tokens)

    def settle(self) -> tuple[float | None, float | None]:
        """Validate if the last step demands it and has not done so, as `validate` does.

        The next step does so too; call it before the result is used, where `between` interrupts.
        """
        found = self.validate() if self._state.validation_due else (None, None)
        self._state.validation_due = False
        return found

    def progress(self) -> TrainingProgress:
        """The losses of the run so far, on a sample of the held-out pairs or of the training pairs.

        Raises InvalidRequest if the run has not begun.
        """
        base, first = self._state.base_loss, self._state.first_loss
        if base is None or first is None:
            raise InvalidRequest("the run has not begun, so there is no progress to report")
        state = self.state()
        last = self._loss_over(lambda rows: self._method.loss_with(state, rows), self._sample)
        return TrainingProgress(base, first, last, len(self._sample), self.on is not None)

    def discard_checkpoint(self) -> None:
        """Remove the checkpoint after the run has ended well."""
        if self._checkpoint is not None:
            self._checkpoint.unlink(missing_ok=True)

    def state(self) -> State:
        """What was learned: the best state if `keep` is "best" and there was validation."""
        if self.recipe.keep == "best" and self._best is not None:
            return self._best
        return self._method.state()

    def result(self) -> Mapping[str, KeyValues]:
        """The same as a prefix, by module. Raises InvalidRequest if the method gives none."""
        return self._as_prefix(self.state())

    def present(self) -> Mapping[str, KeyValues]:
        """The prefix after the last step, by module."""
        return self._as_prefix(self._method.state())

    def loss_on(self, pairs: Sequence[TokenPair], *, in_step: bool = False) -> Loss:
        """The loss of a batch, with gradients into the trained parameters.

        `in_step`: with the recipe's dropout of the prefix and its label smoothing.
        """
        return self._method.loss(pairs, in_step=in_step)

    def save(self) -> None:
        """Write the checkpoint if the run has a path for it."""
        if self._checkpoint is None:
            return
        finite = all(bool(torch.isfinite(value).all()) for value in self.parameters.values())
        self._check("prefix", 0.0 if finite else math.nan)
        tensors: dict[str, torch.Tensor] = {}
        tensors |= {f"parameters.{name}": value for name, value in self.parameters.items()}
        tensors |= optimizer_tensors(self._optimizer, "optimizer")
        tensors |= {f"best.{name}": value for name, value in (self._best or {}).items()}
        tensors |= {f"carried.{name}": value for name, value in self._carried.items()}
        state = {
            "identity": self.identity,
            "recipe": self.recipe.as_dict(),
            "standing": asdict(self._state),
        }
        save_checkpoint(self._checkpoint, tensors, state)

    def resume(self) -> bool:
        """Continue from the checkpoint, if there is one. Refuses the checkpoint of another run."""
        if self._checkpoint is None or not self._checkpoint.exists():
            return False
        saved = checkpoint_of_run(self._checkpoint, self.identity, self.recipe.as_dict())
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(saved.tensors[f"parameters.{name}"])
        restore_optimizer(self._optimizer, "optimizer", saved.tensors)
        best = saved.tensors_of("best")
        self._best = {k: tensor.to(self.model.device) for k, tensor in best.items()} or None
        self._state = RunState(**saved.state["standing"])
        return True

    def _as_prefix(self, state: State) -> Mapping[str, KeyValues]:
        if self.recipe.method not in PREFIX_METHODS:
            raise InvalidRequest(_gives_none(self.recipe))
        return modules_of(state)

    def _backward(self, pairs: Sequence[TokenPair]) -> float:
        """Add the gradient of the mean loss of `pairs`, part by part; return that loss."""
        size = self.recipe.batch_size or 1
        parts = [pairs[start : start + size] for start in range(0, len(pairs), size)]
        total, count = 0.0, 0
        for part in parts:
            loss = self.loss_on(part, in_step=True)
            weight = loss.count if len(parts) > 1 else 1
            torch.autograd.backward(loss.mean * weight if len(parts) > 1 else loss.mean)
            total += loss.mean.item() * weight
            count += weight
        if len(parts) > 1:
            for parameter in self.parameters.values():
                if parameter.grad is not None:
                    parameter.grad /= count
        return total / count

    def _check(self, what: str, value: float) -> None:
        """Raise InvalidRequest unless the value is finite, before anything is changed."""
        check_finite(what, value, step=self.step, lr=self.recipe.lr, kept=self._checkpoint)

    @torch.no_grad()
    def _loss_over(
        self, loss_of_rows: Callable[[Sequence[TokenPair]], Loss], pairs: Sequence[TokenPair]
    ) -> float:
        return mean_loss(loss_of_rows, pairs, self._between)

    def validate(self) -> tuple[float | None, float | None]:
        """The loss of the validation pairs and the metric; keeps the state if it is the best."""
        if not self._validation:
            return None, None
        loss = self._loss_over(self.loss_on, self._validation)
        self._check("validation loss", loss)
        now = self._method.state()
        by_loss = self.recipe.metric == "loss" or self._score is None
        score = -loss if by_loss or self._score is None else self._score(now)
        if self._state.takes_best(loss, score, self.recipe.early_stopping):
            self._best = now
        return loss, None if by_loss else score


def _gives_none(recipe: Recipe) -> str:
    return f"the method {recipe.method} does not give a prefix"
