"""How `polyprefix evaluate` shows results: tables for people, one object for scripts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from app.cli.console import print_warning, stdout

if TYPE_CHECKING:
    from app.datasets.example import Example
    from app.evaluation.systems import SystemResult

_FOUR_PLACES = ("nist", "cider")


def report(
    examples: Sequence[Example], results: Sequence[SystemResult], names: Sequence[str]
) -> dict[str, object]:
    """All results as one object; `left_out` says why a metric is missing."""
    from app.evaluation.metrics import bleu_signature

    return {
        "inputs": len(examples),
        "signature": bleu_signature([each.targets for each in examples]),
        "metrics": list(names),
        "left_out": dict(results[0].scores.left_out),
        "results": [each.as_dict() for each in results],
    }


def print_tables(title: str, examples: Sequence[Example], results: Sequence[SystemResult]) -> None:
    """One table of scores, one of slot errors, and one of differences, as far as there are any."""
    stdout().print(_scores(f"{title}: {len(examples)} inputs", results))
    if any(each.slots is not None for each in results):
        stdout().print(_slots(results))
    if any(each.versus for each in results):
        stdout().print(_differences(results))
    for name, reason in results[0].scores.left_out.items():
        print_warning(f"{_label(name)} is left out: {reason}")


def _scores(title: str, results: Sequence[SystemResult]) -> Table:
    names = list(results[0].scores.statistics)
    table = Table("prefix", "length", *map(_label, names), title=title)
    for result in results:
        rows = {"": result.scores.rounded(), **result.parts}
        for part, scores in rows.items():
            label = f"{result.name}, {part}" if part else result.name
            values = (_number(name, scores[name]) for name in names)
            table.add_row(label, str(result.length), *values)
    return table


def _slots(results: Sequence[SystemResult]) -> Table:
    """Slot errors, and for each field missing and invented values of how many."""
    fields = list(dict.fromkeys(f for each in results if each.slots for f in each.slots.fields))
    table = Table(
        *("prefix", "slot errors", "all right", *fields),
        title="slot errors in %, outputs with all slots right in %, missing + invented of all",
    )
    for result in results:
        if result.slots is None:
            continue
        counts = [result.slots.fields.get(name) for name in fields]
        cells = (f"{c.missing} + {c.invented} of {c.total}" if c else "" for c in counts)
        rates = (f"{result.slots.error_rate:.1f}", f"{result.slots.share_all_right:.1f}")
        table.add_row(result.name, *rates, *cells)
    return table


def _differences(results: Sequence[SystemResult]) -> Table:
    (other,) = (each.name for each in results if not each.versus)
    table = Table(
        *("prefix", "metric", "difference", "95 % interval", "p"),
        title=f"difference from {other}, by paired bootstrap",
    )
    for result in results:
        for name, each in result.versus.items():
            low, high = _number(name, each.low), _number(name, each.high)
            row = (_number(name, each.difference), f"{low} to {high}", f"{each.p_value:.3f}")
            table.add_row(result.name, _label(name), *row)
    return table


def _label(name: str) -> str:
    from app.evaluation.scores import LABELS

    return LABELS[name]


def _number(name: str, value: float) -> str:
    return f"{value:.2f}" if name in _FOUR_PLACES else f"{value:.1f}"
