"""Settings that all benchmarks share."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

import torch

from app.model.load import resolve_device, resolve_dtype


@dataclass(frozen=True)
class BenchSettings:
    """Resolved settings: `rounds` that count, and torch's `threads` for every contender."""

    model: str
    dtype: str
    rounds: int
    threads: int

    @property
    def device(self) -> str:
        """The machine and the dtype, in words."""
        capability = torch.backends.cpu.get_cpu_capability()
        machine = f"{platform.machine()} {capability} × {self.threads} threads"
        return f"cpu ({machine}, {self.dtype})"


def make_settings(
    model: str = "gpt2-shape", dtype: str = "auto", rounds: int = 3, threads: int = 0
) -> BenchSettings:
    """Resolve `auto` and 0 for this machine; benchmarks run on the CPU."""
    resolved = resolve_dtype(dtype, resolve_device("cpu"))
    name = str(resolved).removeprefix("torch.")
    return BenchSettings(model, name, rounds, threads or os.cpu_count() or 1)
