"""The training loop: a prefix is trained, the base model is not changed.

The model uses the same attention function as in serving. It is in eval mode, except during the
steps of a recipe with `model_dropout`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from app.errors import InvalidRequest
from app.evaluation.text_pairs import TokenPair
from app.model.frozen import FrozenModel
from app.prefix.prefix import KeyValues
from app.training.batches import Batches, sample
from app.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from app.training.objective import Loss, loss_of
from app.training.recipe import HIDDEN, Recipe
from app.training.reparameterisation import Reparameterisations, fit_to, words_as_prefix

_VALIDATION_ROWS = 32
_SAMPLED = 64
"""Number of pairs on which the progress of a run is measured."""
_LEARNED = 0.98
"""A run has learned something if its last loss is below this share of the first loss."""


@dataclass(frozen=True)
class Report:
    """The state of a run after a step. `validation_loss` is set if the step measured it."""

    step: int
    total: int
    loss: float
    lr: float
    validation_loss: float | None = None


@dataclass
class _RunState:
    """The state of a run, except its tensors."""

    step: int = 0
    best_loss: float | None = None
    best_step: int = 0
    first_loss: float | None = None
    base_loss: float | None = None


@dataclass(frozen=True)
class TrainingProgress:
    """The result of a run: losses on the same `pairs` pairs.

    `base` is the loss of the base model alone, `first` that of the prefix before its first step.
    """

    base: float
    first: float
    last: float
    pairs: int

    @property
    def fault(self) -> str | None:
        """Why the run has failed; None if it has not."""
        if not self.last < _LEARNED * self.first:
            return f"the loss did not fall ({self.first:.2f} at first, {self.last:.2f} at last)"
        if not self.last < self.base:
            return f"the base model alone has a lower loss ({self.base:.2f}, not {self.last:.2f})"
        return None


class Trainer:
    """Trains one prefix on `pairs`; `validation` decides which state is the best.

    With `checkpoint`, the state is written there every `checkpoint_every` steps. `resume` continues
    from it with bit-identical results. `identity` names the data; a checkpoint of other data,
    another model or another recipe is refused.
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
    ) -> None:
        recipe.check()
        if not pairs:
            raise InvalidRequest("there are no pairs to train on; the data needs at least one")
        self.model = model
        self.recipe = recipe = recipe.for_model(
            model.spec.modules, model.num_parameters, len(pairs)
        )
        self._validation = validation
        self._checkpoint, self._checkpoint_every = checkpoint, checkpoint_every
        self._identity = f"{model.spec.fingerprint}:{identity}"
        self._sample = sample(validation or pairs, _SAMPLED, recipe.seed)
        self._batches = Batches(pairs, recipe.batch_size or 1, recipe.seed)
        self.total = recipe.total_steps(len(pairs))
        self._validate_every = recipe.validate_every or recipe.steps_per_epoch(len(pairs))
        self._state = _RunState()
        self._best: Mapping[str, KeyValues] | None = None
        self.parameters = self._new_parameters()
        self._optimizer = torch.optim.AdamW(
            self.parameters.parameters(),
            recipe.lr or 0.0,
            betas=(0.9, 0.999),
            eps=1e-8,
            weight_decay=0.0,
        )

    @property
    def best_loss(self) -> float | None:
        """Lowest validation loss so far: the mean over all held-out pairs."""
        return self._state.best_loss

    @property
    def step(self) -> int:
        """Number of steps done."""
        return self._state.step

    def initialise(self) -> float | None:
        """Start from the recipe's words, if there are any; return the remaining squared error."""
        words = self.recipe.initial_words
        if words is None or self.step:
            return None
        goal = words_as_prefix(self.model, words, self.recipe.length)
        return fit_to(self.parameters["decoder"], goal)

    def run(self, report: Callable[[Report], None], *, until: int | None = None) -> None:
        """Train to the end, or to step `until`.

        Raises InvalidRequest, which names the step, if a loss, a gradient or the prefix is not
        finite. Nothing of that step is kept or written.
        """
        last = min(self.total, until if until is not None else self.total)
        if self._state.first_loss is None:
            self._state.base_loss = self._loss_over(self._sample, {})
            self._state.first_loss = self._loss_over(self._sample, self.parameters())
            self._check("loss", self._state.base_loss + self._state.first_loss)
        while self.step < last:
            loss, lr = self._step()
            self._state.step += 1
            due = self.step % self._validate_every == 0 or self.step == self.total
            measured = self.validate() if due else None
            if self.step % self._checkpoint_every == 0 or self.step == last:
                self.save()
            report(Report(self.step, self.total, loss, lr, measured))

    def progress(self) -> TrainingProgress:
        """The losses of the run so far, on a sample of the held-out pairs or of the training pairs.

        Raises InvalidRequest if the run has not begun.
        """
        base, first = self._state.base_loss, self._state.first_loss
        if base is None or first is None:
            raise InvalidRequest("the run has not begun, so there is no progress to report")
        last = self._loss_over(self._sample, self.result())
        return TrainingProgress(base, first, last, len(self._sample))

    def discard_checkpoint(self) -> None:
        """Remove the checkpoint after the run has ended well."""
        if self._checkpoint is not None:
            self._checkpoint.unlink(missing_ok=True)

    def result(self) -> Mapping[str, KeyValues]:
        """The prefix by module: the best state if `keep` is "best" and there was validation."""
        if self.recipe.keep == "best" and self._best is not None:
            return self._best
        return self.parameters.result()

    def loss_on(self, pairs: Sequence[TokenPair]) -> Loss:
        """The loss of a batch, with gradients into the prefix's parameters."""
        return loss_of(self.model, self.parameters(), pairs)

    def save(self) -> None:
        """Write the checkpoint if the run has a path for it."""
        if self._checkpoint is None:
            return
        self._check_parameters()
        tensors = {f"parameters.{k}": v for k, v in self.parameters.state_dict().items()}
        tensors |= optimizer_tensors(self._optimizer, "optimizer")
        for name, best in (self._best or {}).items():
            tensors |= {f"best.{name}.keys": best.keys, f"best.{name}.values": best.values}
        state = {
            "identity": self._identity,
            "recipe": self.recipe.as_dict(),
            "standing": asdict(self._state),
        }
        save_checkpoint(self._checkpoint, tensors, state)

    def resume(self) -> bool:
        """Continue from the checkpoint, if there is one. Refuses the checkpoint of another run."""
        if self._checkpoint is None or not self._checkpoint.exists():
            return False
        saved = load_checkpoint(self._checkpoint)
        mine = (self._identity, self.recipe.as_dict())
        if (saved.state.get("identity"), saved.state.get("recipe")) != mine:
            raise InvalidRequest(
                f"{self._checkpoint} belongs to another run (base model, data or settings differ);"
                " remove it or start again with --no-resume"
            )
        own = self.parameters.state_dict()
        if not all(bool(torch.isfinite(tensor).all()) for tensor in saved.tensors.values()):
            raise InvalidRequest(
                f"{self._checkpoint} holds values that are not finite; remove it or start again"
                " with --no-resume"
            )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(saved.tensors[f"parameters.{name}"])
        restore_optimizer(self._optimizer, "optimizer", saved.tensors)
        if "best.decoder.keys" in saved.tensors:
            self._best = {name: self._saved_best(saved, name) for name in self.recipe.modules}
        self._state = _RunState(**saved.state["standing"])
        return True

    def _saved_best(self, saved: Checkpoint, module: str) -> KeyValues:
        keys, values = (saved.tensors[f"best.{module}.{part}"] for part in ("keys", "values"))
        return KeyValues(keys.to(self.model.device), values.to(self.model.device))

    def _new_parameters(self) -> Reparameterisations:
        width = self.model.num_heads * self.model.spec.decoder.head_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed)
            parameters = Reparameterisations(
                self.model.spec.modules,
                self.recipe.modules,
                length=self.recipe.length,
                width=width,
                hidden=self.recipe.hidden or HIDDEN,
            )
        return parameters.to(self.model.device)

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        """Turn the model's dropout on if the recipe asks for it; its noise depends on the step."""
        if not self.recipe.model_dropout:
            yield
            return
        device = self.model.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed((self.recipe.seed << 32) + self.step & (1 << 63) - 1)
            self.model.hf.train()
            try:
                yield
            finally:
                self.model.hf.eval()

    def _step(self) -> tuple[float, float]:
        lr = self.recipe.lr_at(self.step, self.total)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.zero_grad(set_to_none=True)
        with self._dropping():
            loss = self.loss_on(self._batches.at(self.step)).mean
            torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.parameters(), self.recipe.clip_norm)
        value = loss.item()
        self._check("loss", value)
        self._check("gradient", norm.item())
        self._optimizer.step()
        return value, lr

    def _check(self, what: str, value: float) -> None:
        """Raise InvalidRequest unless the value is finite, before anything is changed."""
        if math.isfinite(value):
            return
        kept = self._checkpoint is not None and self._checkpoint.exists()
        state = f"; {self._checkpoint} has the last good state" if kept else ""
        raise InvalidRequest(
            f"the {what} became {value} at step {self.step}{state}. Start again with a lower"
            f" learning rate than {self.recipe.lr}"
        )

    def _check_parameters(self) -> None:
        tensors = self.parameters.state_dict().values()
        finite = all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
        self._check("prefix", 0.0 if finite else math.nan)

    @torch.no_grad()
    def _loss_over(
        self, pairs: Sequence[TokenPair], prefix: Mapping[str, KeyValues] | None = None
    ) -> float:
        """The mean loss of `pairs` behind `prefix`, or behind the present prefix if it is None."""
        ordered = sorted(pairs, key=len)
        total, count = 0.0, 0
        for start in range(0, len(ordered), _VALIDATION_ROWS):
            rows = ordered[start : start + _VALIDATION_ROWS]
            part = self.loss_on(rows) if prefix is None else loss_of(self.model, prefix, rows)
            total += part.mean.item() * part.count
            count += part.count
        return total / count

    @torch.no_grad()
    def validate(self) -> float | None:
        """The mean loss of all validation pairs; keeps the prefix if it is the best so far."""
        if not self._validation:
            return None
        loss = self._loss_over(self._validation)
        self._check("validation loss", loss)
        best = self._state.best_loss
        if best is None or loss < best:
            self._state.best_loss, self._state.best_step = loss, self.step
            self._best = self.parameters.result()
        return loss
