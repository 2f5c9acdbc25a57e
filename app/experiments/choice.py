"""The length and rate that a prefix-length experiment found best for a base model, as a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.errors import InvalidRequest
from app.experiments.results import RunResult
from app.experiments.summary import settings_of

CHOSEN_FILE = "chosen.json"


def write_choice(folder: Path, results: Sequence[RunResult], metric: str) -> dict[str, Any] | None:
    """Add the best length and rate by `metric` to `chosen.json`, which has them by fingerprint.

    Returns them, or None if no run has the metric. The score is optimistic, as it made the choice.
    """
    found = [
        (spread.mean, setting)
        for setting in settings_of(results)
        if (spread := setting.spread(metric)) is not None
    ]
    if not found:
        return None
    score, best = max(found, key=lambda each: each[0])
    first = best.results[0]
    chosen = {
        "model": first.model,
        "length": best.length,
        "lr": best.lr,
        "batch_size": first.batch_size,
        "steps": first.steps,
        metric: round(score, 2),
        "runs": len(best.results),
        "test_inputs": first.test_inputs,
    }
    path = folder / CHOSEN_FILE
    everything = {**_read(path), first.fingerprint: chosen}
    staged = path.with_name(path.name + ".tmp")
    staged.write_text(json.dumps(everything, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    staged.replace(path)
    return chosen


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InvalidRequest(f"{path} is not JSON ({error}); remove the file") from error
    if not isinstance(found, dict):
        raise InvalidRequest(f"{path} must be a JSON object by fingerprint; remove the file")
    return found
