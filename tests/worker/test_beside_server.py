"""A server with its worker process: from a file over a job to a completion."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from app.model.frozen import FrozenModel
from tests.server import RunningServer, serving
from tests.worker.conftest import SMALL_DISTILLATION, SPEECH, examples, until

# a process of low priority gets nothing while other tests fill all cores
pytestmark = pytest.mark.alone

PROMPTS = ["the cat", "name : fox 3", "a fox that is brown and"]


@pytest.fixture(scope="module")
def server(
    tiny_gpt2: FrozenModel, tiny_gpt2_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    root = tmp_path_factory.mktemp("beside")
    settings = {"train": "1", "model": str(tiny_gpt2_folder), "device": "cpu"}
    with serving(tiny_gpt2, root, **settings) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def upload(client: openai.OpenAI, count: int, start: int = 0) -> str:
    lines = "".join(json.dumps(line) + "\n" for line in examples(count, start))
    return client.files.create(file=("data.jsonl", lines.encode()), purpose="fine-tune").id


def create(client: openai.OpenAI, model: FrozenModel, suffix: str, steps: int) -> str:
    hyperparameters = {"length": 4, "hidden": 16, "max_steps": steps, "lr": 0.01, "batch_size": 4}
    return client.fine_tuning.jobs.create(
        model=model.spec.model_id,
        training_file=upload(client, 8),
        validation_file=upload(client, 3, start=8),
        suffix=suffix,
        method={"type": "prefix", "prefix": {"hyperparameters": hyperparameters}},  # type: ignore[arg-type,misc]
    ).id


def workers() -> int:
    """Threads that look after a worker process, of all servers in this process."""
    return [thread.name for thread in threading.enumerate()].count("embedded worker")


def answers(client: openai.OpenAI, model: str) -> list[str]:
    """What a model says to the prompts, greedily."""
    reply = client.completions.create(model=model, prompt=PROMPTS, max_tokens=12, temperature=0)
    return [choice.text for choice in reply.choices]


def test_the_official_client_goes_from_a_file_to_a_completion(
    client: openai.OpenAI, tiny_gpt2: FrozenModel
) -> None:
    job_id = create(client, tiny_gpt2, "fox", 20)
    until(lambda: client.fine_tuning.jobs.retrieve(job_id).finished_at, 300)
    job = client.fine_tuning.jobs.retrieve(job_id)
    assert (job.status, job.error) == ("succeeded", None)
    assert job.fine_tuned_model is not None
    assert job.fine_tuned_model.startswith("fox@")
    assert (job.model_extra or {})["result"]["bleu"] >= 0
    assert answers(client, job.fine_tuned_model) == answers(client, "fox")
    assert answers(client, "fox") != answers(client, tiny_gpt2.spec.model_id)


def test_the_official_client_goes_from_a_document_to_a_completion(
    client: openai.OpenAI, tiny_gpt2: FrozenModel
) -> None:
    text = client.files.create(file=("speech.txt", SPEECH.encode()), purpose="user_data")
    settings = {**SMALL_DISTILLATION, "max_steps": 40}
    method = {"type": "distill", "distill": {"hyperparameters": settings}}
    job_id = client.fine_tuning.jobs.create(
        model=tiny_gpt2.spec.model_id,
        training_file=text.id,
        suffix="speech",
        method=method,  # type: ignore[arg-type]
    ).id
    until(lambda: client.fine_tuning.jobs.retrieve(job_id).finished_at, 300)
    job = client.fine_tuning.jobs.retrieve(job_id)
    assert (job.status, job.error) == ("succeeded", None)
    assert job.fine_tuned_model is not None
    assert job.fine_tuned_model.startswith("speech@")
    divergence = (job.model_extra or {})["result"]["divergence"]
    assert divergence["last"] < divergence["first"], divergence
    assert answers(client, job.fine_tuned_model) == answers(client, "speech")
    assert answers(client, "speech") != answers(client, tiny_gpt2.spec.model_id)


def test_replies_are_the_same_while_a_job_is_trained(
    client: openai.OpenAI, server: RunningServer, tiny_gpt2: FrozenModel
) -> None:
    base = tiny_gpt2.spec.model_id
    before = answers(client, base)
    job_id = create(client, tiny_gpt2, "long", 100_000)
    training = server.services.training
    until(lambda: training.jobs.get("demo", job_id).step > 0, 300)
    assert all(answers(client, base) == before for _ in range(5))
    assert client.fine_tuning.jobs.retrieve(job_id).status == "running"
    client.fine_tuning.jobs.cancel(job_id)
    assert client.fine_tuning.jobs.retrieve(job_id).status == "cancelled"


def test_without_training_there_is_no_process_and_jobs_wait(
    tiny_gpt2: FrozenModel, tmp_path: Path
) -> None:
    before = workers()
    with (
        serving(tiny_gpt2, tmp_path, train="off") as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        assert workers() == before
        job_id = create(client, tiny_gpt2, "waiting", 5)
        events = client.fine_tuning.jobs.list_events(job_id).data
        assert client.fine_tuning.jobs.retrieve(job_id).status == "queued"
    assert any("worker" in event.message for event in events if event.level == "warn")
