"""The table of an experiment: our means and spreads beside the paper's numbers, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from app.evaluation.scores import LABELS
from app.experiments.grids import Experiment, GridOptions
from app.experiments.paper import FINDINGS, paper_scores, source
from app.experiments.results import SLOT_METRICS, RunResult
from app.experiments.summary import Setting, settings_of

NAMES = {
    **LABELS,
    "slot_errors": "slot errors, %",
    "slots_all_right": "inputs with all slots right, %",
}
"""What a metric is called in tables and figures."""
RANDOM = "(random)"
_NONE = "–"


def metric_name(name: str) -> str:
    """The name of a score for people: `unseen_bleu` is "BLEU, unseen"."""
    if name.startswith("unseen_"):
        return f"{NAMES[name.removeprefix('unseen_')]}, unseen"
    return NAMES[name]


def table_cells(
    options: GridOptions, results: Sequence[RunResult]
) -> tuple[list[str], list[list[str]]]:
    """The heading and the rows; a metric that no run has is left out."""
    settings = settings_of(results)
    metrics = _metrics(options, settings)
    beside = {name for name in metrics for each in settings if name in _paper(options, each)}
    head = ["method", "length", "first values", "pairs", "rate", "runs"]
    for name in metrics:
        head += [metric_name(name), *([f"{metric_name(name)} (paper)"] if name in beside else [])]
    head += ["loss", "minutes"]
    rows = [_row(options, each, metrics, beside) for each in settings]
    return head, rows


def markdown(
    experiment: Experiment, options: GridOptions, results: Sequence[RunResult], data: str
) -> str:
    """A page with the table, the paper's finding and what has failed."""
    head, rows = table_cells(options, results)
    tested = max((result.test_inputs or 0 for result in results), default=0)
    models = sorted({result.model for result in results})
    lines = [
        f"# {experiment.title}",
        "",
        f"Base model {', '.join(models)}, data `{data}`, {tested} test inputs; mean ± standard"
        f" deviation over runs. Columns marked (paper): {source(models[0] if models else '')}.",
        "",
        _line(head),
        _line(["---"] * len(head)),
        *map(_line, rows),
        "",
        FINDINGS[experiment.name],
    ]
    gap = average_gap(settings_of(results), options.shown()[0])
    if gap is not None:
        metric = metric_name(options.shown()[0])
        lines += ["", f"Here: prefix minus fine-tuning is {gap:+.1f} {metric} on average."]
    failed = [result for result in results if result.error]
    if failed:
        lines += ["", "Failed runs:", ""]
        lines += [f"* `{each.run}` ({each.method}): {each.error}" for each in failed]
    return "\n".join(lines) + "\n"


def average_gap(settings: Sequence[Setting], metric: str) -> float | None:
    """The mean over data sizes of a prefix's score minus fine-tuning's; None without both.

    Of several prefixes, the first counts: it has the paper's usual length.
    """
    by_method: dict[str, dict[int, float]] = {}
    for each in settings:
        found = each.spread(metric)
        if found is not None:
            by_method.setdefault(each.method, {}).setdefault(each.data_size, found.mean)
    prefix, finetune = by_method.get("prefix", {}), by_method.get("finetune", {})
    both = [prefix[size] - finetune[size] for size in prefix.keys() & finetune.keys()]
    return fmean(both) if both else None


def _metrics(options: GridOptions, settings: Sequence[Setting]) -> list[str]:
    known = (*options.metrics, *SLOT_METRICS)
    names = [*known, *(f"unseen_{name}" for name in known)]
    return [name for name in names if any(each.spread(name) for each in settings)]


_VARY_LENGTH = ("prefix-length", "ablation")


def _paper(options: GridOptions, setting: Setting) -> dict[str, float]:
    first, length = setting.results[0], setting.length
    # a table at the small scale has one prefix length of its own: that row is the paper's prefix
    if first.experiment not in _VARY_LENGTH and length == options.usual_length():
        length = options.paper("prefix").length
    found = paper_scores(
        *(first.experiment, options.task.name, setting.method, length),
        held_out=options.held_out,
        model=first.model,
    )
    return dict(found)


def _row(
    options: GridOptions, setting: Setting, metrics: Sequence[str], beside: set[str]
) -> list[str]:
    cells = [
        setting.method,
        str(setting.length) if setting.length else _NONE,
        setting.words or RANDOM,
        str(setting.data_size),
        f"{setting.lr:g}" if setting.lr is not None else _NONE,
        str(len(setting.results)),
    ]
    paper = _paper(options, setting)
    for name in metrics:
        cells.append(_shown(setting, name))
        if name in beside:
            cells.append(f"{paper[name]:g}" if name in paper else _NONE)
    seconds = setting.spread("train_seconds")
    minutes = f"{seconds.mean / 60:.1f}" if seconds is not None else _NONE
    return [*cells, _shown(setting, "last_loss"), minutes]


def _shown(setting: Setting, name: str) -> str:
    found = setting.spread(name)
    if found is None:
        return _NONE
    return f"{found.mean:.2f}" + (f" ± {found.deviation:.2f}" if found.count > 1 else "")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
