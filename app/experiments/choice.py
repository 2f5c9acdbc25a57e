"""From an experiment's results to what `train` takes by default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from app.experiments.results import RunResult
from app.experiments.summary import Setting, settings_of
from app.training.choices import Choice, Choices


def choose(choices: Choices, experiment: str, results: Sequence[RunResult]) -> list[str]:
    """Keep what a `prefix-length` or a `rates` experiment found best; say it in words.

    The length, and each method's rate, are those with the lowest loss on development pairs.
    """
    if not results:
        return []
    fingerprint, model = results[0].fingerprint, results[0].model
    before = replace(choices.of(fingerprint), model=model)
    settings = settings_of(results)
    if experiment == "rates":
        after, said = _rates(before, settings)
    elif experiment == "prefix-length":
        after, said = _length(before, settings)
    else:
        return []
    if said:
        choices.keep(fingerprint, after)
    return said


def _length(before: Choice, settings: Sequence[Setting]) -> tuple[Choice, list[str]]:
    name = "development_loss"
    found = [(spread.mean, each) for each in settings if (spread := each.spread(name))]
    if not found:
        return before, []
    loss, best = min(found, key=lambda each: each[0])
    rates = {} if best.lr is None else {"prefix": best.lr}
    evidence = {
        name: round(loss, 4),
        "runs": len(best.results),
        "steps": best.results[0].steps,
    }
    after = replace(
        before,
        length=best.length,
        rates={**before.rates, **rates},
        evidence={**before.evidence, "prefix-length": evidence},
    )
    return after, [f"best: length {best.length}, rate {best.lr:g}" if best.lr else ""]


def _rates(before: Choice, settings: Sequence[Setting]) -> tuple[Choice, list[str]]:
    best: dict[str, tuple[float, float]] = {}
    for each in settings:
        spread = each.spread("development_loss")
        if spread is not None and each.lr is not None:
            known = best.get(each.method)
            if known is None or spread.mean < known[0]:
                best[each.method] = (spread.mean, each.lr)
    losses = {name: round(loss, 4) for name, (loss, _) in best.items()}
    known_losses = dict(before.evidence.get("rates", {}))
    after = replace(
        before,
        rates={**before.rates, **{name: rate for name, (_, rate) in best.items()}},
        evidence={**before.evidence, "rates": {**known_losses, **losses}},
    )
    return after, [f"best rate of {name}: {rate:g}" for name, (_, rate) in best.items()]
