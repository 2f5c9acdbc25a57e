"""`polyprefix bench train-beside`: what requests and a training job cost each other on one machine.

A real server with its worker process, and a closed load of streamed completions. Each round
measures the job alone, the load alone (the job is paused) and both together.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

import httpx

from app.bench.http_bench import LoadClient, prefix_files, push_prefix, served
from app.bench.load import Load
from app.bench.measure import in_own_process, percentile
from app.bench.settings import BenchSettings
from app.bench.shapes import model_folder
from app.errors import PolyprefixError

_START_S = 300.0
_LOOK_S = 0.2
_SETTLE_S = 2.0
"""Seconds after a change of the job or the load before anything is measured."""
_EXAMPLES = 64


@dataclass
class _Gaps:
    """Times between tokens, in seconds, by round; and the job's steps per second, by round."""

    alone: list[list[float]] = field(default_factory=list)
    beside: list[list[float]] = field(default_factory=list)
    idle_speed: list[float] = field(default_factory=list)
    speed: list[float] = field(default_factory=list)


class _TrainingJob:
    """A job that lasts longer than the benchmark, over HTTP."""

    def __init__(self, url: str, model: str) -> None:
        self._http = httpx.Client(base_url=f"{url}/v1", timeout=_START_S)
        lines = (
            {"input": f"name : place {n} | food : number {n}", "target": f"Place {n} serves {n}."}
            for n in range(_EXAMPLES)
        )
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        file = self._post("/files", data={"purpose": "fine-tune"}, files={"file": ("f", content)})
        self._path = "/fine_tuning/jobs"
        hyperparameters = {"max_steps": 1_000_000}
        body = {
            "model": model,
            "training_file": file["id"],
            "suffix": "bench-job",
            "method": {"type": "prefix", "prefix": {"hyperparameters": hyperparameters}},
        }
        self._path = f"{self._path}/{self._post(self._path, json=body)['id']}"
        self.wait_for_steps()

    def pause(self) -> None:
        """Stop it; returns when the worker has let it go."""
        self._post(f"{self._path}/pause")
        time.sleep(_SETTLE_S)

    def resume(self) -> None:
        """Let it go on; returns when it trains."""
        self._post(f"{self._path}/resume")
        self.wait_for_steps()

    def wait_for_steps(self) -> None:
        """Returns after the next step that is known of."""
        begin, deadline = self.steps_now(), time.monotonic() + _START_S
        while self.steps_now() <= begin:
            if time.monotonic() > deadline:
                raise PolyprefixError("no worker trains the job of the benchmark")
            time.sleep(_LOOK_S)

    def steps(self) -> tuple[int, float]:
        """Steps that are done, and the time at which that became known."""
        begin = self.steps_now()
        while (now := self.steps_now()) == begin:
            time.sleep(_LOOK_S / 10)
        return now, time.monotonic()

    def close(self) -> None:
        """Cancel it."""
        self._post(f"{self._path}/cancel")
        self._http.close()

    def steps_now(self) -> int:
        """Steps that the catalog knows of: those of a second ago."""
        return int(self._http.get(self._path).raise_for_status().json()["step"])

    def _post(self, path: str, **content: Any) -> dict[str, Any]:
        found: dict[str, Any] = self._http.post(path, **content).raise_for_status().json()
        return found


def run_train_beside(settings: BenchSettings, load: Load, seconds: float) -> dict[str, Any]:
    """Ratios of the times between tokens with and without a job, and what the job keeps.

    Each part of a round takes about `seconds`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = model_folder(settings.model, Path(scratch))
        bodies = in_own_process(prefix_files, folder, load)
        with served(settings, folder, scratch, len(load.items), train="auto") as url:
            for index, body in enumerate(bodies):
                push_prefix(url, index, body)
            job = _TrainingJob(url, _model_id(url))
            found = _measure(settings.rounds, url, load, job, seconds)
            job.close()
    return _result(settings, found)


def _model_id(url: str) -> str:
    info = httpx.get(f"{url}/info", timeout=_START_S).raise_for_status().json()
    return str(info["model_id"])


def _measure(rounds: int, url: str, load: Load, job: _TrainingJob, seconds: float) -> _Gaps:
    found = _Gaps()
    client = LoadClient(url, load)
    for _ in range(rounds):
        begin, began = job.steps()
        time.sleep(seconds)
        end, ended = job.steps()
        found.idle_speed.append((end - begin) / (ended - began))
        job.pause()
        found.alone.append(_gaps(client, seconds))
        job.resume()
        _gaps(client, _SETTLE_S)
        begin, began = job.steps_now(), time.monotonic()
        found.beside.append(_gaps(client, seconds))
        end, ended = job.steps_now(), time.monotonic()
        found.speed.append((end - begin) / (ended - began))
    return found


def _gaps(client: LoadClient, seconds: float) -> list[float]:
    """Times between tokens of as many whole loads as `seconds` hold."""
    until = time.monotonic() + seconds
    before = len(client.rounds)
    while time.monotonic() < until:
        client()
    return [gap for one in client.rounds[before:] for row in one.rows for gap in row.gaps]


def _result(settings: BenchSettings, found: _Gaps) -> dict[str, Any]:
    alone = [gap for gaps in found.alone for gap in gaps]
    beside = [gap for gaps in found.beside for gap in gaps]
    means = [mean(two) / mean(one) for one, two in zip(found.alone, found.beside, strict=True)]
    return {
        "bench": "train-beside",
        "device": settings.device,
        "ours": {
            "inter_token_mean_ms": round(1000 * mean(beside), 2),
            "inter_token_p99_ms": round(1000 * percentile(beside, 0.99), 2),
            "without_job_mean_ms": round(1000 * mean(alone), 2),
            "without_job_p99_ms": round(1000 * percentile(alone, 0.99), 2),
            "job_steps_per_s": round(median(found.speed), 3),
            "job_steps_per_s_idle": round(median(found.idle_speed), 3),
        },
        "peers": {},
        "ratio": {
            "inter_token_mean": round(median(means), 3),
            "inter_token_p99": round(percentile(beside, 0.99) / percentile(alone, 0.99), 3),
            "job_speed": round(median(found.speed) / median(found.idle_speed), 3),
        },
    }
