"""The figure of an experiment, as PNG and SVG, by matplotlib (extra `train`).

Lines and bars differ in colour (Okabe & Ito's colours, which colour-blind readers tell apart) and
in marker or place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from app.errors import InvalidRequest
from app.experiments.grids import Experiment, GridOptions
from app.experiments.results import RunResult
from app.experiments.summary import Setting, settings_of
from app.experiments.tables import RANDOM, metric_name

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX"
_DPI = 150
_PANEL = (4.4, 3.6)
"""Width and height of a panel in inches."""
_STYLE = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
_UNBOUNDED = frozenset({"nist", "cider"})
"""Metrics that do not go from 0 to 100."""


def draw(
    experiment: Experiment, options: GridOptions, results: Sequence[RunResult], folder: Path
) -> list[Path]:
    """Write `figure.png` and `figure.svg`; return their paths, or none if no run has scores.

    InvalidRequest if matplotlib is not installed.
    """
    settings = settings_of(results)
    if not settings:
        return []
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise InvalidRequest(
            "figures need matplotlib; install it with `pip install 'polyprefix[train]'` and type"
            " the same command again (finished runs are kept)"
        ) from error
    panels = _panels(experiment, options, settings)
    paths = [folder / "figure.png", folder / "figure.svg"]
    with rc_context({**_STYLE, "svg.hashsalt": experiment.name}):
        width, height = _PANEL
        figure = Figure(figsize=(width * len(panels), height + 0.5), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for place, panel in zip(axes, panels, strict=True):
            panel(place)
        tested = max(result.test_inputs or 0 for each in settings for result in each.results)
        caption = f"{experiment.title}\n{results[0].model}, {tested} test inputs"
        figure.suptitle(caption, fontsize="large")
        for path in paths:
            staged = path.with_name(f"{path.stem}.tmp{path.suffix}")
            metadata = {"Date": None} if path.suffix == ".svg" else None
            figure.savefig(staged, dpi=_DPI, metadata=metadata)
            staged.replace(path)
    return paths


Panel = Callable[[Any], None]


def _panels(
    experiment: Experiment, options: GridOptions, settings: Sequence[Setting]
) -> list[Panel]:
    shown = [name for name in options.shown() if any(each.spread(name) for each in settings)]
    if experiment.name == "prefix-length":
        names = [(name, _unit(name)) for name in shown]
        names.append(("last_loss", "training loss (nats)"))
        return [
            _lines(settings, name, label, "prefix length (positions)", _length, _by_rate)
            for name, label in names
        ]
    if experiment.name in ("low-data", "data-size"):
        return [
            _lines(settings, name, _unit(name), "training pairs", _data_size, _by_method)
            for name in shown
        ]
    if not experiment.is_tested:
        label = "loss on development pairs (nats)"
        return [
            _lines(settings, "development_loss", label, "learning rate", _rate, _by_method, "log")
        ]
    if experiment.unseen:
        return [_bars(settings, (name, f"unseen_{name}"), _unit(name)) for name in shown]
    return [_bars(settings, (name,), _unit(name)) for name in shown]


def _unit(metric: str) -> str:
    return metric_name(metric) + ("" if metric in _UNBOUNDED else " (0 to 100)")


def _length(setting: Setting) -> int:
    return setting.length


def _data_size(setting: Setting) -> int:
    return setting.data_size


def _rate(setting: Setting) -> float:
    return setting.lr or 0.0


def _by_rate(setting: Setting) -> str:
    return f"learning rate {setting.lr:g}" if setting.lr is not None else setting.method


def _by_method(setting: Setting) -> str:
    return setting.method


def _lines(
    settings: Sequence[Setting],
    metric: str,
    label: str,
    x_label: str,
    x_of: Callable[[Setting], float],
    line_of: Callable[[Setting], str],
    y_scale: str = "linear",
) -> Panel:
    """Lines over a logarithmic axis; a band shows the standard deviation over runs."""

    def panel(axes: Any) -> None:
        ticks = sorted({x_of(each) for each in settings})
        for number, name in enumerate(dict.fromkeys(map(line_of, settings))):
            points = sorted(
                (x_of(each), spread.mean, spread.deviation)
                for each in settings
                if line_of(each) == name and (spread := each.spread(metric)) is not None
            )
            if not points:
                continue
            xs, means, deviations = zip(*points, strict=True)
            colour = _COLOURS[number % len(_COLOURS)]
            marker = _MARKERS[number % len(_MARKERS)]
            axes.plot(xs, means, color=colour, marker=marker, label=name)
            if any(deviations):
                low = [mean - off for mean, off in zip(means, deviations, strict=True)]
                high = [mean + off for mean, off in zip(means, deviations, strict=True)]
                axes.fill_between(xs, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.set_xscale("log")
        axes.set_yscale(y_scale)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel(x_label)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)

    return panel


def _bars(settings: Sequence[Setting], metrics: Sequence[str], label: str) -> Panel:
    """Horizontal bars with whiskers of one standard deviation; one bar for each metric."""

    def panel(axes: Any) -> None:
        height = 0.8 / len(metrics)
        names = [_bar_name(each, settings) for each in settings]
        for number, metric in enumerate(metrics):
            spreads = [each.spread(metric) for each in settings]
            places = [at + number * height for at in range(len(settings))]
            axes.barh(
                places,
                [spread.mean if spread else 0.0 for spread in spreads],
                height,
                xerr=[spread.deviation if spread else 0.0 for spread in spreads],
                color=_COLOURS[number],
                error_kw={"elinewidth": 1, "capsize": 2},
                label="unseen" if metric.startswith("unseen_") else "seen",
            )
        middle = (len(metrics) - 1) * height / 2
        axes.set_yticks([at + middle for at in range(len(settings))], names)
        axes.invert_yaxis()
        axes.set_xlabel(label)
        axes.grid(axis="x", alpha=0.3)
        if len(metrics) > 1:
            axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(metrics))

    return panel


def _bar_name(setting: Setting, settings: Sequence[Setting]) -> str:
    if len({each.words for each in settings}) > 1:
        return setting.words or RANDOM
    lengths = {each.length for each in settings if each.method == setting.method}
    return f"{setting.method}, {setting.length}" if len(lengths) > 1 else setting.method
