"""`polyprefix bench train-many`: many jobs of one base model in one pass, and one after another.

Every job trains the keys and values of its own prefix directly (`prefix-direct`; PEFT's default is
the same), by AdamW with clipping, on one row in each step.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from app.bench.measure import Contender, Round, contest
from app.bench.settings import BenchSettings
from app.bench.shapes import model_folder
from app.bench.train_bench import PeftStep, TrainLoad, load_for_training, peak_mb
from app.errors import PolyprefixError
from app.evaluation.text_pairs import TokenPair
from app.model.frozen import FrozenModel
from app.model.packed import PackedLinear
from app.training.groups.job_group import JobGroup
from app.training.recipe import Recipe
from app.training.trainer import Trainer

_ENDLESS = 1_000_000
"""Steps of a job: more than any benchmark takes."""


def run_train_many(settings: BenchSettings, load: TrainLoad) -> dict[str, Any]:
    """Tokens per second of a step of `load.rows` jobs: together, and one job after another.

    `memory_ratio` compares the peak memory with that of one job with as many rows.
    `share_of_products` is the part of the time that the matrix products of the pass alone take.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = model_folder(settings.model, Path(scratch))
        contenders: dict[str, Contender[Round]] = {
            kind: Contender(_prepared, kind, folder, load, settings.dtype, settings.threads)
            for kind in (*_OURS, "peft")
        }
        with contest(list(contenders.values()), settings.rounds):
            peaks = {kind: contenders[kind].ask(peak_mb) for kind in ("together", "one job")}
    seconds = {kind: one.median_seconds for kind, one in contenders.items()}
    speeds = {kind: sum(load.lengths) / taken for kind, taken in seconds.items()}
    peers = {
        "peft, one job after another": speeds["peft"],
        "ours, one job after another": speeds["in turn"],
        "ours, one job with all rows": speeds["one job"],
    }
    return {
        "bench": "train-many",
        "device": settings.device,
        "ours": {
            "tokens_per_s": round(speeds["together"], 2),
            "step_ms": round(1000 * seconds["together"], 1),
            "products_ms": round(1000 * seconds["products"], 1),
            "share_of_products": round(seconds["products"] / seconds["together"], 3),
            "peak_mb": round(peaks["together"]),
            "peak_mb_of_one_job": round(peaks["one job"]),
            "memory_ratio": round(peaks["together"] / peaks["one job"], 3),
        },
        "peers": {name: {"tokens_per_s": round(speed, 2)} for name, speed in peers.items()},
        "ratio": {name: round(speeds["together"] / speed, 3) for name, speed in peers.items()},
        "jobs": load.rows,
        "lengths": load.lengths,
    }


class _Together:
    """A step of all jobs in one group."""

    def __init__(self, model: FrozenModel, load: TrainLoad) -> None:
        self._group = JobGroup(model)
        for trainer in _trainers(model, load):
            self._group.add(trainer)

    def __call__(self) -> None:
        for _, report in self._group.step():
            if isinstance(report, PolyprefixError):
                raise report


class _InTurn:
    """A step of each job, one after another."""

    def __init__(self, model: FrozenModel, load: TrainLoad) -> None:
        self._trainers = _trainers(model, load)

    def __call__(self) -> None:
        for trainer in self._trainers:
            trainer.take_step()


class _OneJob:
    """A step of one job that has all rows."""

    def __init__(self, model: FrozenModel, load: TrainLoad) -> None:
        self._trainer = _trainer(model, _pairs(model, load), load.prefix_length, 0)

    def __call__(self) -> None:
        self._trainer.take_step()


class _Products:
    """The matrix products of a group's pass, forward and backward, and nothing else."""

    def __init__(self, model: FrozenModel, load: TrainLoad) -> None:
        self._products: list[Callable[[], Any]] = []
        group = _Together(model, load)
        group()
        linear = [
            part
            for part in model.hf.modules()
            if isinstance(part, PackedLinear) or getattr(part, "weight", torch.ones(1)).dim() == 2
        ]
        hooks = [part.register_forward_hook(self._note) for part in linear]
        group()
        for hook in hooks:
            hook.remove()

    def _note(self, layer: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if not inputs or not inputs[0].is_floating_point():
            return
        x, slopes = torch.randn_like(inputs[0]), torch.randn_like(output)
        if isinstance(layer, PackedLinear):
            self._products.append(lambda: layer.linear(x))
            if inputs[0].requires_grad:
                self._products.append(lambda: layer.input_gradient(slopes))
        else:
            x.requires_grad_(inputs[0].requires_grad)
            self._products.append(lambda: _forward_and_back(layer, x, slopes))

    def __call__(self) -> None:
        for product in self._products:
            product()


def _forward_and_back(layer: torch.nn.Module, x: torch.Tensor, slopes: torch.Tensor) -> None:
    made = layer(x)
    if x.requires_grad:
        torch.autograd.grad(made, x, slopes)


class _PeftInTurn(PeftStep):
    """A step of PEFT for each row alone. One adapter does: switching adapters is not measured."""

    def __init__(self, folder: str, load: TrainLoad, dtype: str) -> None:
        super().__init__(folder, load, dtype)
        self._whole = self._inputs
        self._lengths = self._inputs["attention_mask"].sum(dim=1).tolist()

    def __call__(self) -> None:
        for row, length in enumerate(self._lengths):
            self._inputs = {
                name: values[row : row + 1, :length] for name, values in self._whole.items()
            }
            super().__call__()


_OURS: dict[str, Callable[[FrozenModel, TrainLoad], Round]] = {
    "together": _Together,
    "in turn": _InTurn,
    "one job": _OneJob,
    "products": _Products,
}


def _prepared(kind: str, folder: str, load: TrainLoad, dtype: str, threads: int) -> Round:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if kind == "peft":
        return _PeftInTurn(folder, load, dtype)
    return _OURS[kind](load_for_training(folder, dtype, threads), load)


def _pairs(model: FrozenModel, load: TrainLoad) -> list[TokenPair]:
    return load.pairs(int(model.hf.config.vocab_size))


def _trainers(model: FrozenModel, load: TrainLoad) -> list[Trainer]:
    return [
        _trainer(model, [pair], load.prefix_length, job)
        for job, pair in enumerate(_pairs(model, load))
    ]


def _trainer(model: FrozenModel, pairs: list[TokenPair], length: int, seed: int) -> Trainer:
    recipe = Recipe(
        method="prefix-direct",
        length=length,
        batch_size=len(pairs),
        lr=1e-4,
        max_steps=_ENDLESS,
        model_dropout=False,
        seed=seed,
    )
    return Trainer(model, pairs, recipe)
