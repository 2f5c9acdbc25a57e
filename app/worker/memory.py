"""Whether a second model fits into the memory that this machine still has."""

from __future__ import annotations

from pathlib import Path

import torch

from app.model.frozen import FrozenModel

_PER_PARAMETER = {"float32": 8, "bfloat16": 4}
"""Bytes by dtype: a worker holds each weight twice, packed for forward and backward passes."""
_BESIDE = 1 << 30
"""Bytes of libraries, activations and optimiser states."""
_UNLIMITED = 1 << 60


def needed_bytes(num_parameters: int, dtype: str) -> int:
    """About how much memory a worker takes for a base model of so many parameters in `dtype`."""
    return _PER_PARAMETER[dtype] * num_parameters + _BESIDE


def memory_obstacle(model: FrozenModel, dtype: str) -> str | None:
    """Why no worker that trains this base model in `dtype` fits beside it now; None if one does."""
    needed, available = needed_bytes(model.num_parameters, dtype), available_bytes(model.device)
    if available is None or available >= needed:
        return None
    return (
        f"a worker needs about {needed >> 20} MiB of memory and {available >> 20} MiB are free; set"
        " POLYPREFIX_TRAIN to a number of threads to start it all the same, or run `polyprefix"
        " worker` elsewhere"
    )


def available_bytes(device: torch.device, root: Path = Path("/")) -> int | None:
    """How much memory a new process finds on `device`; None where nobody can tell.

    On a CPU: what the system can give without swapping, and no more than the control group has
    left. `root` is where `proc` and `sys` are.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    found = [_of_system(root / "proc/meminfo"), _of_group(root / "sys/fs/cgroup")]
    known = [each for each in found if each is not None]
    return min(known) if known else None


def _of_system(meminfo: Path) -> int | None:
    try:
        for line in meminfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return None
    return None


def _of_group(group: Path) -> int | None:
    """What the control group (version 2, else 1) has left; its file cache counts as free."""
    for limit, used in (
        (group / "memory.max", group / "memory.current"),
        (group / "memory/memory.limit_in_bytes", group / "memory/memory.usage_in_bytes"),
    ):
        try:
            most = int(limit.read_text())
            if most >= _UNLIMITED:
                return None
            return most - int(used.read_text()) + _file_cache(limit.parent / "memory.stat")
        except (OSError, ValueError):  # another version, or "max"
            continue
    return None


def _file_cache(stat: Path) -> int:
    lines = dict(line.split()[:2] for line in stat.read_text().splitlines() if " " in line)
    return int(lines.get("inactive_file", 0))
