"""Whether a second model fits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from app.model.frozen import FrozenModel
from app.worker import memory
from app.worker.memory import available_bytes, memory_obstacle, needed_bytes

CPU = torch.device("cpu")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_system_says_what_is_available(tmp_path: Path) -> None:
    write(tmp_path / "proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:    2048 kB\n")
    assert available_bytes(CPU, tmp_path) == 2048 * 1024


def test_a_control_group_bounds_it_and_its_file_cache_counts_as_free(tmp_path: Path) -> None:
    write(tmp_path / "proc/meminfo", "MemAvailable: 2048 kB\n")
    group = tmp_path / "sys/fs/cgroup"
    write(group / "memory.max", "1000000\n")
    write(group / "memory.current", "900000\n")
    write(group / "memory.stat", "anon 5\ninactive_file 50000\n")
    assert available_bytes(CPU, tmp_path) == 150_000
    write(group / "memory.max", "max\n")
    assert available_bytes(CPU, tmp_path) == 2048 * 1024


def test_nobody_can_tell_where_there_is_no_proc(tmp_path: Path) -> None:
    assert available_bytes(CPU, tmp_path) is None


def test_the_obstacle_names_both_figures(
    tiny_gpt2: FrozenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = needed_bytes(tiny_gpt2.num_parameters, "float32")
    for available, obstructs in ((None, False), (needed, False), (needed - 1, True)):
        monkeypatch.setattr(memory, "available_bytes", lambda _, found=available: found)
        assert (memory_obstacle(tiny_gpt2, "float32") is not None) == obstructs
    assert f"{needed >> 20} MiB" in (memory_obstacle(tiny_gpt2, "float32") or "")


def test_a_parameter_takes_half_of_the_memory_in_bfloat16() -> None:
    beside = needed_bytes(0, "float32")
    assert needed_bytes(0, "bfloat16") == beside
    assert needed_bytes(1000, "bfloat16") - beside == (needed_bytes(1000, "float32") - beside) / 2
