"""Workers that have the base model in bfloat16, and jobs that move between dtypes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from app.jobs.types import JobStatus
from app.model.frozen import FrozenModel
from app.training.recipe import Recipe
from app.training.session import Session, TrainingJob
from tests.worker.conftest import SMALL, Workshop, examples

OPEN = {name: value for name, value in SMALL.items() if name != "hidden"}
SETTINGS = {
    "prefix": SMALL,
    "embedding": SMALL,
    "prefix-direct": OPEN,
    "infix": {**OPEN, "lr": 0.002},  # at 0.01 its losses jump, with any rounding
}


def session_in_bfloat16(
    folder: Path, model: Path, method: str, settings: dict[str, Any]
) -> Session:
    """What `polyprefix train --dtype bf16` trains of the lines that the jobs here have."""
    for name, lines in (("data", examples(8)), ("valid", examples(3, start=8))):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = Recipe(method=method, dtype="bf16", **settings)
    job = TrainingJob(
        str(model), folder / "data", recipe, folder / "checkpoint", folder / "valid", device="cpu"
    )
    session = Session(job)
    session.train(lambda _: None)
    return session


@pytest.mark.parametrize("method", SETTINGS)
def test_a_job_in_bfloat16_learns_what_a_run_of_the_command_line_learns(
    workshop: Workshop,
    bfloat16_gpt2: FrozenModel,
    tiny_gpt2_folder: Path,
    tmp_path: Path,
    method: str,
) -> None:
    settings = SETTINGS[method]
    valid = examples(3, start=8)
    job_id = workshop.create("fox", settings, examples(8), valid, method=method)
    (job,) = workshop.run(job_id, model=bfloat16_gpt2)
    assert job.status is JobStatus.SUCCEEDED
    assert job.result is not None
    assert job.result["recipe"]["dtype"] == "bf16"
    session = session_in_bfloat16(tmp_path, tiny_gpt2_folder, method, settings)
    loss, expected = job.result["loss"], session.trainer.progress()
    assert loss["last"] < loss["first"]
    assert loss["last"] == pytest.approx(expected.last, rel=1e-3)
    if not session.gives_prefix:
        assert job.fine_tuned_model is None
        return
    made, alone = workshop.prefix(job), session.prefix({})
    assert made.decoder.keys.dtype == alone.decoder.keys.dtype == torch.float16
    torch.testing.assert_close(made.decoder.keys, alone.decoder.keys, rtol=0, atol=1e-2)
    torch.testing.assert_close(made.decoder.values, alone.decoder.values, rtol=0, atol=1e-2)


@pytest.mark.parametrize("method", SETTINGS)
@pytest.mark.parametrize("first", ["float32", "bfloat16"])
def test_a_job_goes_on_in_the_dtype_of_the_next_worker(
    workshop: Workshop, bfloat16_gpt2: FrozenModel, first: str, method: str
) -> None:
    single, half = workshop.model, bfloat16_gpt2
    before, after = (single, half) if first == "float32" else (half, single)
    more: dict[str, Any] = {"valid": examples(3, start=8), "method": method}
    settings = {**SETTINGS[method], "max_steps": 60}
    job_id = workshop.create("moved", settings, **more)
    workshop.begin(job_id, model=before)
    (moved,) = workshop.run(job_id, model=after)
    (whole,) = workshop.run(workshop.create("whole", settings, **more), model=after)
    assert moved.status is JobStatus.SUCCEEDED
    assert moved.result is not None
    assert whole.result is not None
    assert moved.result["recipe"] == whole.result["recipe"]
    assert moved.result["recipe"]["dtype"] == ("bf16" if after is half else "fp32")
    assert moved.result["loss"]["last"] == pytest.approx(whole.result["loss"]["last"], rel=0.02)
    assert moved.trained_tokens == whole.trained_tokens
    assert not any("starts again" in event.message for event in workshop.events(job_id))


def test_a_job_that_moves_between_workers_in_bfloat16_makes_the_same(
    workshop: Workshop, bfloat16_gpt2: FrozenModel
) -> None:
    settings = {**SMALL, "max_steps": 60}
    job_id = workshop.create("moved", settings)
    workshop.begin(job_id, model=bfloat16_gpt2)
    moved, whole = workshop.run(job_id, workshop.create("whole", settings), model=bfloat16_gpt2)
    assert workshop.prefix(moved).digest == workshop.prefix(whole).digest


def test_a_job_does_not_choose_its_dtype(workshop: Workshop) -> None:
    (job,) = workshop.run(workshop.create("fox", {**SMALL, "dtype": "bf16"}))
    assert job.error is not None
    assert "'dtype' is none" in job.error.message
