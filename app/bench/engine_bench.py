"""`polyprefix bench engine`, `continuous` and `stall`: our engine against the peers."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from app.bench.encoder_peers import ENCODER_PEERS
from app.bench.load import Load, poisson_load
from app.bench.measure import Contender, Round, contest, in_own_process
from app.bench.ours import Ours, engine_figures, stall_figures
from app.bench.peers import PEERS
from app.bench.report import with_ratios
from app.bench.settings import BenchSettings
from app.bench.shapes import model_folder
from app.model.families import is_encoder_decoder

_STATIC_BATCHES = (16, 32)


def run_engine(
    settings: BenchSettings,
    peers: Sequence[str],
    load: Load,
) -> dict[str, Any]:
    """The whole load as one batch, prefill included."""
    rows = len(load.items)
    return _compare("engine", settings, load, rows, dict.fromkeys(peers, (rows,)))


def run_continuous(
    settings: BenchSettings,
    peers: Sequence[str],
    *,
    requests: int,
    per_second: float,
    max_rows: int,
) -> dict[str, Any]:
    """Poisson arrivals at saturation, all lengths mixed; each peer uses its best static batch.

    PEFT is left out because it cannot mix tasks in a batch.
    """
    load = poisson_load(requests=requests, per_second=per_second, prefixes=16)
    batches = {name: _STATIC_BATCHES for name in peers if name != "peft"}
    return _compare("continuous", settings, load, max_rows, batches)


def _compare(
    bench: str,
    settings: BenchSettings,
    load: Load,
    max_rows: int,
    batches: Mapping[str, Sequence[int]],
) -> dict[str, Any]:
    """Measure our engine and the peers in turns; each peer counts with its best batch size.

    If the load samples, our engine is also measured with greedy decoding.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = model_folder(settings.model, Path(scratch))
        ours = our_engine(settings, folder, load, max_rows)
        theirs = {
            name: [_peer(settings, name, folder, load, size) for size in sizes]
            for name, sizes in batches.items()
        }
        peers = [contender for sizes in theirs.values() for contender in sizes]
        plain = replace(load, sampling={})
        greedy = [our_engine(settings, folder, plain, max_rows)] if load.sampling else []
        with contest([ours, *greedy, *peers], settings.rounds):
            figures = ours.ask(engine_figures)
            for contender in greedy:
                greedy_ms = contender.ask(engine_figures)["decode_step_ms"]
                figures["greedy_decode_step_ms"] = greedy_ms
                figures["decode_step_ratio"] = figures["decode_step_ms"] / greedy_ms
    speeds = {
        name: load.num_new / min(contender.median_seconds for contender in sizes)
        for name, sizes in theirs.items()
    }
    own = {"tokens_per_s": load.num_new / ours.median_seconds, **figures}
    return with_ratios(bench, settings.device, own, speeds)


def run_stall(settings: BenchSettings, prompts: int) -> dict[str, Any]:
    """Measure what long prompts that arrive together do to the token times of 16 other rows."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = model_folder(settings.model, Path(scratch))
        figures = in_own_process(stall_figures, folder, settings.dtype, settings.threads, prompts)
    ours = {name: round(value, 2) for name, value in figures.items()}
    return {"bench": "stall", "device": settings.device, "ours": ours}


def our_engine(settings: BenchSettings, folder: str, load: Load, rows: int) -> Contender[Ours]:
    """Our engine as a contender."""
    return Contender(Ours, folder, load, settings.dtype, rows, settings.threads)


def _peer(
    settings: BenchSettings, name: str, folder: str, load: Load, batch: int
) -> Contender[Round]:
    return Contender(_prepare_peer, name, folder, load, settings.dtype, batch, settings.threads)


def _prepare_peer(
    name: str, folder: str, load: Load, dtype: str, batch: int, threads: int
) -> Round:
    torch.set_num_threads(threads)
    config = AutoConfig.from_pretrained(folder)
    peers = ENCODER_PEERS if is_encoder_decoder(config) else PEERS
    return peers[name](folder, load, dtype, batch)
