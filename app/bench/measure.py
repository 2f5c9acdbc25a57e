"""Measuring: each contender in a process of its own, warmed up, the median of several rounds."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

import torch
from transformers import AutoConfig

from app.bench.encoder_peers import ENCODER_PEERS
from app.bench.load import Load
from app.bench.peers import PEERS
from app.model.families import is_encoder_decoder

Result = TypeVar("Result")


def in_own_process(work: Callable[..., Result], *arguments: Any) -> Result:
    """Run `work` in a fresh process, so that memory and thread pools do not interfere."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work, *arguments).result()


def peer_tokens_per_s(
    name: str, folder: str, load: Load, dtype: str, batch: int, rounds: int, threads: int
) -> float:
    """New tokens per second of a peer over the whole load; for a process of its own."""
    torch.set_num_threads(threads)
    config = AutoConfig.from_pretrained(folder)
    peers = ENCODER_PEERS if is_encoder_decoder(config) else PEERS
    run = peers[name](folder, load, dtype, batch)
    return load.num_new / median_seconds(run, rounds)


def median_seconds(run: Callable[[], None], rounds: int) -> float:
    """Median duration of `run` after one round that does not count."""
    run()
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of them lie (nearest rank); 0 if there are none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
