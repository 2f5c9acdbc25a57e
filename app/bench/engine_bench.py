"""`polyprefix bench engine`, `continuous` and `stall`: our engine against the peers."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.bench.load import Load, poisson_load
from app.bench.measure import in_own_process, peer_tokens_per_s
from app.bench.ours import engine_figures, stall_figures
from app.bench.report import with_ratios
from app.bench.settings import BenchSettings
from app.bench.shapes import model_folder

_STATIC_BATCHES = (16, 32)


def run_engine(
    settings: BenchSettings,
    peers: Sequence[str],
    load: Load,
) -> dict[str, Any]:
    """The whole load as one batch, prefill included."""
    rows = len(load.items)
    with tempfile.TemporaryDirectory() as scratch:
        folder = model_folder(settings.model, Path(scratch))
        ours = _ours(settings, folder, load, rows)
        theirs = {name: _peer(settings, name, folder, load, rows) for name in peers}
    return with_ratios("engine", settings.device, ours, theirs)


def run_continuous(
    settings: BenchSettings,
    peers: Sequence[str],
    *,
    requests: int,
    per_second: float,
    max_rows: int,
) -> dict[str, Any]:
    """Poisson arrivals at saturation, all lengths mixed; a peer's best static batch counts.

    PEFT is left out: it has no batch of mixed tasks.
    """
    load = poisson_load(requests=requests, per_second=per_second, prefixes=16)
    with tempfile.TemporaryDirectory() as scratch:
        folder = model_folder(settings.model, Path(scratch))
        ours = _ours(settings, folder, load, max_rows)
        theirs = {
            name: max(_peer(settings, name, folder, load, batch) for batch in _STATIC_BATCHES)
            for name in peers
            if name != "peft"
        }
    return with_ratios("continuous", settings.device, ours, theirs)


def run_stall(settings: BenchSettings, prompts: int) -> dict[str, Any]:
    """What long prompts that arrive at once do to the times between tokens of 16 other rows."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = model_folder(settings.model, Path(scratch))
        figures = in_own_process(stall_figures, folder, settings.dtype, settings.threads, prompts)
    ours = {name: round(value, 2) for name, value in figures.items()}
    return {"bench": "stall", "device": settings.device, "ours": ours}


def _ours(settings: BenchSettings, folder: str, load: Load, rows: int) -> dict[str, float]:
    return in_own_process(
        engine_figures, folder, load, settings.dtype, settings.rounds, rows, settings.threads
    )


def _peer(settings: BenchSettings, name: str, folder: str, load: Load, batch: int) -> float:
    return in_own_process(
        peer_tokens_per_s,
        name,
        folder,
        load,
        settings.dtype,
        batch,
        settings.rounds,
        settings.threads,
    )
