"""Many training runs of one base model, which take their steps together.

The base model is frozen and a prefix belongs to a row, so one forward and backward pass computes
the rows of all runs. Everything else (data order, optimiser, rate, validation, checkpoint) stays
each run's own, and so each run ends as it would alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from app.errors import InvalidRequest, PolyprefixError
from app.model.frozen import FrozenModel
from app.training.groups.shared_step import SharedStep, compute_together
from app.training.methods.names import FROZEN_METHODS
from app.training.progress import Interrupted, Report
from app.training.trainer import Trainer

MAX_TOKENS = 1024
"""Tokens of one pass, if no more is said: more make a step no faster and take more memory."""


class StepOutcome(NamedTuple):
    """What a step of the group was for one run: its report, or the error that ended it."""

    trainer: Trainer
    report: Report | PolyprefixError


class JobGroup:
    """Runs on `model` that take steps together; they may join and leave between steps.

    A pass has at most `max_tokens` tokens (a longer row is a pass of its own), so a step may take
    several. A run whose step does not allow company (see `Trainer.shares_passes`) computes it
    alone.
    """

    def __init__(self, model: FrozenModel, *, max_tokens: int = MAX_TOKENS) -> None:
        self._model, self._max_tokens = model, max_tokens
        self._members: list[Trainer] = []

    @property
    def members(self) -> Sequence[Trainer]:
        """The runs, in the order in which they joined."""
        return tuple(self._members)

    def add(self, trainer: Trainer) -> None:
        """Let a run take part from the next step on; it may have taken steps before.

        Raises InvalidRequest for a method that changes the model, a run of another model, one that
        has ended and one that takes part already.
        """
        _check_shareable(trainer.recipe.method)
        if trainer.model is not self._model:
            raise InvalidRequest("a run of another base model cannot join; start another group")
        if trainer.ended:
            raise InvalidRequest("the run has ended, so it cannot take another step")
        if trainer in self._members:
            raise InvalidRequest("the run takes part already")
        self._members.append(trainer)

    def remove(self, trainer: Trainer) -> None:
        """Let a run leave; it keeps its state. Raises InvalidRequest if it does not take part."""
        if trainer not in self._members:
            raise InvalidRequest("the run does not take part")
        self._members.remove(trainer)

    def step(self, between: Callable[[], None] = lambda: None) -> list[StepOutcome]:
        """One step of each run; then runs that have ended or failed leave the group.

        A run fails alone: with a loss, a gradient or a trained value that is not finite, a
        checkpoint that cannot be written and the like. The others' steps are as without it.
        `between` is called before each pass. If it raises Interrupted, the step ends: a run without
        an outcome has not taken it, and may take it later.
        """
        members = list(self._members)
        shared: dict[Trainer, SharedStep] = {}
        found: dict[Trainer, Report | PolyprefixError] = {}
        with suppress(Interrupted):
            for trainer in members:
                with _failing_alone(trainer, found):
                    if trainer.shares_passes:
                        rows = trainer.rows(trainer.begin_step())
                        recompute = trainer.recipe.gradient_checkpointing
                        shared[trainer] = SharedStep(rows, recompute=recompute)
            compute_together(self._model, list(shared.values()), self._max_tokens, between)
            for trainer, step in shared.items():
                with _failing_alone(trainer, found):
                    found[trainer] = trainer.end_step(step.finish())
            for trainer in members:
                if trainer not in found:
                    between()
                    with _failing_alone(trainer, found):
                        found[trainer] = trainer.take_step()
        for trainer, report in found.items():
            if trainer.ended or isinstance(report, PolyprefixError):
                self._members.remove(trainer)
        return [StepOutcome(trainer, found[trainer]) for trainer in members if trainer in found]


def _check_shareable(method: str) -> None:
    """Raise InvalidRequest unless runs of this method may take steps together."""
    if method not in FROZEN_METHODS:
        raise InvalidRequest(
            f"method: {method} cannot be trained together with other runs, because it changes the"
            f" base model; choose one of {', '.join(FROZEN_METHODS)}"
        )


@contextmanager
def _failing_alone(
    trainer: Trainer, found: dict[Trainer, Report | PolyprefixError]
) -> Iterator[None]:
    try:
        yield
    except PolyprefixError as error:
        found[trainer] = error
