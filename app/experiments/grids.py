"""The experiments: which runs each one consists of, small or as large as the paper's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from app.errors import InvalidRequest
from app.experiments.plan import RunSettings
from app.experiments.tasks import ExperimentTask, PaperSettings
from app.training.methods.names import ADAPTER_SHARES, METHODS, check_method
from app.training.recipe import RATE_SHARES


class Scale(StrEnum):
    """How large the grid is: `small` fits about an hour on two cores with the demo models."""

    SMALL = "small"
    PAPER = "paper"


@dataclass(frozen=True)
class GridOptions:
    """What a grid depends on.

    `num_pairs`: pairs to train on. `default_lr`: the rate that `train` would use for this model.
    `seeds` and `steps` replace the number of seeds and of steps of a run where they are not 0,
    `methods` those that an experiment compares where there are any. `rates` are the learning rates
    that were found best on this model, by method. `held_out`: the paper's name for what
    `extrapolation` holds out of the task, if it has one.
    """

    scale: Scale
    task: ExperimentTask
    num_pairs: int
    default_lr: float
    metrics: tuple[str, ...]
    seeds: int = 0
    steps: int = 0
    methods: tuple[str, ...] = ()
    rates: Mapping[str, float] = field(default_factory=dict)
    dtype: str = "fp32"
    held_out: str = ""

    def shown(self) -> tuple[str, ...]:
        """The two metrics of the figure: the task's, or others where these are not computed."""
        usual = [name for name in self.task.shown if name in self.metrics]
        return tuple(dict.fromkeys([*usual, *self.metrics]))[:2]

    @property
    def small(self) -> bool:
        """Whether this is the small scale."""
        return self.scale is Scale.SMALL

    def usual_length(self) -> int:
        """The length of the prefix where the experiment does not vary it."""
        return SMALL_LENGTH if self.small else self.paper("prefix").length

    def longest(self) -> float:
        """The longest prefix that the scale allows."""
        return SMALL_LONGEST if self.small else math.inf

    def paper(self, method: str) -> PaperSettings:
        """The paper's settings of a method for this task, without what is held out."""
        return self.task.paper(method, self.held_out)

    def run(self, experiment: str, method: str, **changes: object) -> RunSettings:
        """A run with the scale's settings for the method, and with `changes`."""
        if self.small:
            settings = RunSettings(
                experiment,
                method,
                length=SMALL_LENGTH,
                max_steps=SMALL_STEPS,
                lr=self.rates.get(method),
            )
        else:
            paper = self.paper(method)
            settings = RunSettings(
                experiment,
                method,
                length=paper.length,
                lr=paper.lr,
                epochs=paper.epochs,
                batch_size=paper.batch_size,
                warmup_steps=0,
            )
        settings = replace(settings, dtype=self.dtype, **changes)  # type: ignore[arg-type]
        return settings if settings.has_length else replace(settings, length=0, words=None)

    def compared(self, *usual: str) -> tuple[str, ...]:
        """The methods that an experiment compares: those that were asked for, or the usual ones."""
        return self.methods or usual

    def finished(self, runs: Sequence[RunSettings], seeds: int) -> list[RunSettings]:
        """`runs` with each of the seeds; the option `steps` applies to all of them."""
        if self.steps:
            runs = [replace(run, max_steps=self.steps, epochs=None) for run in runs]
        count = self.seeds or seeds
        return [replace(run, seed=FIRST_SEED + number) for number in range(count) for run in runs]


SMALL_LENGTH = 10
SMALL_LONGEST = 40
SMALL_STEPS = 200
FIRST_SEED = 101
LOW_DATA_SIZES = (50, 100, 200, 500)
DATA_SHARES = (10, 20, 40, 60, 80, 100)
"""Percent of the training data."""
INITIAL_WORDS = (
    *(None, "active", "elephant", "summarize", "table-to-text:"),
    *("banana", "beautiful", "divide", "keep"),
)
"""None: random values."""
_INITIALISATION_SIZE = 100
_FROM_WORDS = ("prefix", "prefix-direct", "embedding")
ABLATION_LENGTHS = (1, 10, 20)
_BOTH = ("prefix", "finetune")
_BASELINES = ("prefix", "finetune", "finetune-top2", "adapter-3%", "adapter-0.1%")
_DEVELOPMENT_SHARE = 0.3
_LENGTH_DEVELOPMENT = 128
"""Most pairs that are held out of the training part to choose a length by their loss."""
_RATE_SIZE = 200
_RATES = (1 / 3, 1.0, 3.0, 10.0)
"""Of the model's default rate for the method."""
_SMALL_RATES = (1 / 3, 1.0)
"""Of the model's default rate."""


@dataclass(frozen=True)
class Experiment:
    """An experiment of the paper. `title` heads its figure and table.

    `unseen`: whether it tests on held-out values too. `is_tested`: whether it tests at all; if not,
    it is about losses on development pairs. `compares`: whether it compares methods.
    """

    name: str
    title: str
    build: Callable[[GridOptions], list[RunSettings]]
    unseen: bool = False
    is_tested: bool = True
    compares: bool = True

    @property
    def unused_options(self) -> Mapping[str, str]:
        """Options of `polyprefix experiment` that do nothing in this one, and why."""
        unused = {"users": "it has no users"}
        if not self.unseen:
            unused["hold_out"] = "it holds no values out"
        if not self.compares:
            unused["methods"] = "it trains prefixes alone"
        if not self.is_tested:
            unused["metrics"] = "it compares losses"
        return unused

    def runs(self, options: GridOptions) -> list[RunSettings]:
        """The grid, in the order in which it is run: all of it once before a second seed."""
        return self.build(options)


def _prefix_length(options: GridOptions) -> list[RunSettings]:
    task = options.task
    lengths = [length for length in task.lengths if length <= options.longest()]
    rates: list[float | None] = [None]
    if not options.small:
        rates = [task.paper("prefix").lr]
    elif "prefix" in options.rates:
        rates = [options.rates["prefix"]]
    else:
        rates = [float(f"{options.default_lr * share:.1g}") for share in _SMALL_RATES]
    held = max(1, min(_LENGTH_DEVELOPMENT, options.num_pairs // 10))
    runs = [
        options.run("prefix-length", "prefix", length=length, lr=rate, development=held)
        for rate in rates
        for length in lengths
    ]
    return options.finished(runs, 2 if options.small else 3)


def _data_size(options: GridOptions) -> list[RunSettings]:
    sizes = [max(1, options.num_pairs * share // 100) for share in DATA_SHARES]
    runs = [
        options.run("data-size", method, data_size=size)
        for size in sizes
        for method in options.compared(*_BOTH)
    ]
    return _own_subsets(options.finished(runs, 2 if options.small else 3))


def _initialisation(options: GridOptions) -> list[RunSettings]:
    runs = [
        replace(
            _low_data_run(options, "initialisation", "prefix", _INITIALISATION_SIZE), words=words
        )
        for words in INITIAL_WORDS
    ]
    return _drawn(options, runs)


def _low_data(options: GridOptions) -> list[RunSettings]:
    runs = [
        _low_data_run(options, "low-data", method, size)
        for size in LOW_DATA_SIZES
        for method in options.compared(*_BOTH)
    ]
    return _drawn(options, runs)


def _extrapolation(options: GridOptions) -> list[RunSettings]:
    methods = options.compared(*_BASELINES)
    return options.finished([options.run("extrapolation", method) for method in methods], 3)


def _ablation(options: GridOptions) -> list[RunSettings]:
    usual = options.task.paper("prefix").length
    lengths = {*ABLATION_LENGTHS, *([usual] if usual <= options.longest() else [])}
    runs = [
        options.run("ablation", method, length=length)
        for length in sorted(lengths)
        for method in options.compared("prefix", "infix", "embedding")
        if method == "prefix" or length in ABLATION_LENGTHS
    ]
    return options.finished(runs, 2 if options.small else 3)


def _baselines(options: GridOptions) -> list[RunSettings]:
    methods = options.compared(*_BASELINES, "lora")
    runs = [options.run("baselines", method) for method in methods]
    if "prefix" in methods and not options.small:
        others = options.task.other_lengths
        runs += [options.run("baselines", "prefix", length=length) for length in others]
    return options.finished(runs, 3)


def _rates(options: GridOptions) -> list[RunSettings]:
    size = min(_RATE_SIZE, int(options.num_pairs / (1 + _DEVELOPMENT_SHARE)))
    development = max(1, round(_DEVELOPMENT_SHARE * size))
    runs = [
        options.run(
            "rates",
            method,
            lr=float(f"{options.default_lr * RATE_SHARES.get(method, 1.0) * share:.1g}"),
            data_size=size,
            development=development,
        )
        for method in options.compared(*_BASELINES, "lora")
        for share in _RATES
    ]
    return options.finished(runs, 1)


def _low_data_run(options: GridOptions, experiment: str, method: str, size: int) -> RunSettings:
    recipe = options.task.low_data
    size = min(size, int(options.num_pairs / (1 + _DEVELOPMENT_SHARE)))
    development = max(1, round(_DEVELOPMENT_SHARE * size))
    common = {
        "length": recipe.length,
        "words": recipe.words if method in _FROM_WORDS else None,
        "data_size": size,
        "development": development,
    }
    if options.small:
        return options.run(experiment, method, **common, max_steps=100 if size < 200 else 200)
    return options.run(
        experiment,
        method,
        **common,
        lr=recipe.lr,
        batch_size=recipe.batch_size_of(method),
        warmup_steps=recipe.warmup_steps,
        max_steps=recipe.steps_of(method, size),
        epochs=recipe.epochs_of(method, size),
    )


def _drawn(options: GridOptions, runs: Sequence[RunSettings]) -> list[RunSettings]:
    """Runs with several subsets of the data: 3 small, else 5 with 2 seeds each, as in the paper."""
    if options.small:
        return _own_subsets(options.finished(runs, 3))
    return [
        replace(run, subset_seed=subset) for subset in range(5) for run in options.finished(runs, 2)
    ]


def _own_subsets(runs: Sequence[RunSettings]) -> list[RunSettings]:
    """Runs whose seed chooses the subset of the data too."""
    return [replace(run, subset_seed=run.seed - FIRST_SEED) for run in runs]


EXPERIMENTS = {
    each.name: each
    for each in (
        Experiment("prefix-length", "Prefix length", _prefix_length, compares=False),
        Experiment("data-size", "Size of the training data", _data_size),
        Experiment(
            *("initialisation", "Initialisation with little data", _initialisation), compares=False
        ),
        Experiment("low-data", "Little data", _low_data),
        Experiment("ablation", "Prefix, infix and embedding-only", _ablation),
        Experiment("extrapolation", "Unseen categories", _extrapolation, unseen=True),
        Experiment("baselines", "Prefix-tuning and the baselines", _baselines),
        Experiment("rates", "Learning rates", _rates, is_tested=False),
    )
}
"""The experiments by name."""


def experiment_named(name: str) -> Experiment:
    """The experiment `name`. InvalidRequest names the known ones if there is no such experiment."""
    if name not in EXPERIMENTS:
        raise InvalidRequest(
            f"there is no experiment '{name}'; the experiments are {', '.join(EXPERIMENTS)}"
        )
    return EXPERIMENTS[name]


def method_names(text: str | None) -> tuple[str, ...]:
    """The methods in a text with commas between. InvalidRequest for an unknown one."""
    names = tuple(name.strip() for name in (text or "").split(",") if name.strip())
    for name in names:
        check_method(name, (*METHODS, *ADAPTER_SHARES))
    return names


def scale_named(name: str) -> Scale:
    """The scale `name`. InvalidRequest if there is no such scale."""
    try:
        return Scale(name)
    except ValueError as error:
        raise InvalidRequest(f"there is no scale '{name}'; give `small` or `paper`") from error
