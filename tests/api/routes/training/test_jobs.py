"""Fine-tuning jobs by the official client: made, watched, cancelled, paused, refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from app.jobs.checking import CheckedFile
from app.jobs.types import ClaimedJob, ClaimLost, JobEvent, JobProgress
from app.prefix.prefix import Prefix
from app.training.recipe import METRICS
from tests.api.routes.training.conftest import EXAMPLES, lines
from tests.server import RunningServer
from tests.tiny import random_prefix

Uploaded = Callable[..., str]
Claim = Callable[[str], ClaimedJob]


@pytest.fixture
def prefix(tiny_gpt2: Any) -> Prefix:
    return random_prefix(tiny_gpt2, 3, seed=77)


def test_a_job_is_made_as_the_client_makes_it(
    client: openai.OpenAI, uploaded: Uploaded, base: str
) -> None:
    file, held_out = uploaded(), uploaded(lines(*EXAMPLES[:2]))
    job = client.fine_tuning.jobs.create(
        model=base,
        training_file=file,
        validation_file=held_out,
        suffix="tone",
        seed=7,
        metadata={"team": "red"},
        method={  # type: ignore[arg-type]
            "type": "prefix",
            "prefix": {"hyperparameters": {"n_epochs": 3, "length": 5, "lr": 0.01}},
        },
        extra_body={"user": "ann"},
    )
    assert job.id.startswith("ftjob-")
    assert (job.object, job.status, job.model, job.seed) == (
        "fine_tuning.job", "queued", base, 7,
    )  # fmt: skip
    assert (job.training_file, job.validation_file) == (file, held_out)
    assert job.method is not None
    assert job.method.type == "prefix"
    assert job.method.prefix == {  # type: ignore[attr-defined]
        "hyperparameters": {"n_epochs": 3, "length": 5, "lr": 0.01}
    }
    assert job.hyperparameters.n_epochs == 3
    assert job.hyperparameters.batch_size == "auto"
    assert job.metadata == {"team": "red"}
    assert job.fine_tuned_model is None
    assert job.error is None
    assert job.result_files == []
    assert client.fine_tuning.jobs.retrieve(job.id) == job


def test_the_worker_is_told_the_recipes_words(
    client: openai.OpenAI, uploaded: Uploaded, base: str, claim: Claim
) -> None:
    job = client.fine_tuning.jobs.create(
        model=base,
        training_file=uploaded(),
        method={  # type: ignore[arg-type]
            "type": "prefix-direct",
            "prefix-direct": {"hyperparameters": {"n_epochs": 3, "batch_size": "auto"}},
        },
    )
    spec = claim(job.id).spec
    assert (spec.method, dict(spec.hyperparameters), spec.seed) == (
        "prefix-direct", {"epochs": 3}, 101,
    )  # fmt: skip
    assert spec.suffix.startswith("ft-")


@pytest.mark.parametrize("metric", METRICS)
def test_a_job_selects_its_state_by_any_metric_of_a_recipe(
    metric: str, client: openai.OpenAI, uploaded: Uploaded, base: str, claim: Claim
) -> None:
    job = client.fine_tuning.jobs.create(
        model=base,
        training_file=uploaded(),
        validation_file=uploaded(lines(*EXAMPLES[:2])),
        method={"type": "prefix", "prefix": {"hyperparameters": {"metric": metric}}},  # type: ignore[arg-type]
    )
    assert dict(claim(job.id).spec.hyperparameters) == {"metric": metric}


def test_openais_own_settings_are_understood(
    client: openai.OpenAI, uploaded: Uploaded, base: str, claim: Claim
) -> None:
    file = uploaded()
    old = client.fine_tuning.jobs.create(
        model=base,
        training_file=file,
        hyperparameters={"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 2.0},
    )
    new = client.fine_tuning.jobs.create(
        model=base,
        training_file=file,
        method={
            "type": "supervised",
            "supervised": {
                "hyperparameters": {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 2}
            },
        },
    )
    plain = client.fine_tuning.jobs.create(
        model=base,
        training_file=file,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": "auto"}}},
    )
    assert old.hyperparameters.learning_rate_multiplier == 2
    specs = {}
    for job in (old, new, plain):
        shown = client.fine_tuning.jobs.retrieve(job.id)
        assert shown.method is not None
        assert shown.method.type == "prefix"
    first = claim(old.id)
    specs = dict(first.spec.hyperparameters)
    assert specs == {"epochs": 2, "batch_size": 4, "lr": 6e-3}  # twice what a small model has


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"training_file": "file-" + "0" * 24}, "training_file", "does not exist"),
        ({"training_file": "nonsense"}, "training_file", "'nonsense' is not the id of a file"),
        ({"validation_file": "x"}, "validation_file", "list them with GET /v1/files"),
        ({"validation_file": "file-" + "0" * 24}, "validation_file", "does not exist"),
        ({"model": "tone"}, "model", '"on": "name@alias"'),
        ({"suffix": "No Spaces"}, "suffix", "suffix: 'No Spaces' is not a name: 1 to 64 of a-z"),
        ({"user": "a\nb"}, "user", "printable characters"),
        ({"seed": -1}, "seed", "0 or more"),
        ({"metadata": {"a": 5}}, "metadata.a", "takes a text"),
        ({"metadata": {str(n): "x" for n in range(20)}}, "metadata", "at most 16"),
        ({"alias": "abcdef"}, "alias", "digest"),
        ({"colour": "red"}, "colour", "unknown field"),
        ({"integrations": [{"type": "wandb"}]}, "integrations", "not supported"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs", ""),
        ({"method": {"type": "dpo"}}, "method.type", "'prefix'"),
        ({"method": {"type": "prefix", "embedding": {}}}, "method", "belong in `prefix`"),
        ({"method": {"type": "infix"}, "alias": "stable"}, "alias", "an infix is no prefix"),
        ({"method": {"type": "infix"}, "on": "tone"}, "on", "does not train behind"),
        (
            {"method": {"type": "infix", "infix": {"hyperparameters": {"initial_words": "a"}}}},
            "method",
            "the method infix cannot start from it",
        ),
        (
            {"method": {"type": "prefix", "prefix": {"hyperparameters": {"epochs": 3}}}},
            "method.prefix.hyperparameters.epochs",
            "n_epochs",
        ),
        (
            {"method": {"type": "prefix", "prefix": {"hyperparameters": {"length": 5000}}}},
            "method",
            "at most 512 positions here",
        ),
        (
            {"method": {"type": "embedding", "embedding": {"hyperparameters": {"depth": 2}}}},
            "method.embedding.hyperparameters.depth",
            "the method embedding does not use it",
        ),
        (
            {"method": {"type": "prefix", "prefix": {"hyperparameters": {"modules": ["cross"]}}}},
            "method",
            "no 'cross'",
        ),
        ({"hyperparameters": {"batch_size": 513}}, "hyperparameters", "at most 512 pairs"),
        (
            {"method": {"type": "prefix", "prefix": {"hyperparameters": {"accumulate": 600}}}},
            "method",
            "lower batch_size or accumulate",
        ),
        (
            {
                "method": {
                    "type": "prefix",
                    "prefix": {"hyperparameters": {"hidden": 65_536, "depth": 2}},
                }
            },
            "method",
            "lower hidden or depth or length",
        ),
        (
            {"method": {"type": "distill", "distill": {"hyperparameters": {"exchanges": 5000}}}},
            "method",
            "exchanges: a job makes at most 2048",
        ),
        (
            {
                "method": {"type": "prefix", "prefix": {"hyperparameters": {"length": 5}}},
                "hyperparameters": {"n_epochs": 3},
            },
            "hyperparameters",
            "inside `method`",
        ),
        (
            {"method": {"type": "prefix", "prefix": {"hyperparameters": {"metric": "bleu"}}}},
            "method.prefix.hyperparameters.metric",
            "metric: bleu needs validation data; give a validation file",
        ),
        (
            {"method": {"type": "infix", "infix": {"hyperparameters": {"early_stopping": 3}}}},
            "method.infix.hyperparameters.early_stopping",
            "early_stopping needs validation data",
        ),
        (
            {
                "method": {
                    "type": "prefix-direct",
                    "prefix-direct": {"hyperparameters": {"initial_task_mean": True}},
                }
            },
            "method.prefix-direct.hyperparameters.initial_task_mean",
            "it needs a prefix to train on; give one as `on`",
        ),
        ({"on": "nothing"}, "on", "on: prefix 'nothing' does not exist"),
        ({"on": "a+b"}, "on", "one prefix"),
        ({"method": {"type": "distill"}}, "training_file", "`user_data`"),
    ],
)
def test_what_cannot_be_is_refused_before_it_is_queued(
    client: openai.OpenAI,
    uploaded: Uploaded,
    base: str,
    change: dict[str, Any],
    param: str,
    words: str,
) -> None:
    file = uploaded()
    before = [job.id for job in client.fine_tuning.jobs.list(limit=100)]
    body = {"model": base, "training_file": file} | change
    with pytest.raises(openai.APIStatusError) as caught:
        client.post("/fine_tuning/jobs", body=body, cast_to=object)
    assert caught.value.status_code in (400, 404)
    assert caught.value.body["param"] == param  # type: ignore[index]
    assert words in caught.value.message
    assert [job.id for job in client.fine_tuning.jobs.list(limit=100)] == before


def test_validations_that_take_longer_than_the_steps_between_are_refused(
    client: openai.OpenAI, uploaded: Uploaded, base: str
) -> None:
    settings = {"batch_size": 1, "validate_every": 5}
    asked: dict[str, Any] = {
        "model": base,
        "training_file": uploaded(),
        "method": {"type": "prefix", "prefix": {"hyperparameters": settings}},
    }
    client.fine_tuning.jobs.create(**asked)
    with pytest.raises(openai.BadRequestError, match="validate after 6 steps or more, not 5"):
        client.fine_tuning.jobs.create(**asked, validation_file=uploaded())


def test_a_text_that_is_too_long_for_a_job_is_refused(
    client: openai.OpenAI, uploaded: Uploaded, base: str
) -> None:
    text = uploaded(b"A sentence.\n" * 100_000, "text.txt", purpose="user_data")
    with pytest.raises(openai.BadRequestError, match="at most 1048576 bytes") as caught:
        client.fine_tuning.jobs.create(
            model=base,
            training_file=text,
            method={"type": "distill"},  # type: ignore[arg-type]
        )
    assert caught.value.param == "training_file"


def test_the_training_file_does_not_validate_itself(
    client: openai.OpenAI, uploaded: Uploaded, base: str
) -> None:
    file = uploaded()
    with pytest.raises(openai.BadRequestError, match="is the training file"):
        client.fine_tuning.jobs.create(model=base, training_file=file, validation_file=file)


def test_a_prefix_that_it_is_trained_behind_is_fixed_when_the_job_is_made(
    client: openai.OpenAI, uploaded: Uploaded, base: str, trained: RunningServer, prefix: Prefix
) -> None:
    assert trained.push("support", prefix, **{"x-alias": "stable"}).status_code in (200, 201)
    job = client.fine_tuning.jobs.create(
        model=base, training_file=uploaded(), extra_body={"on": "support@stable"}
    )
    assert job.on == f"support@{prefix.digest}"  # type: ignore[attr-defined]


def test_a_prefix_that_would_be_too_long_behind_another_one_is_refused(
    client: openai.OpenAI, uploaded: Uploaded, base: str, trained: RunningServer, prefix: Prefix
) -> None:
    assert trained.push("support", prefix).status_code in (200, 201)

    def make(length: int) -> Any:
        hyperparameters = {"length": length, "hidden": 1}
        return client.fine_tuning.jobs.create(
            model=base,
            training_file=uploaded(),
            method={"type": "prefix", "prefix": {"hyperparameters": hyperparameters}},  # type: ignore[arg-type]
            extra_body={"on": f"support@{prefix.digest}"},
        )

    room = 512 - prefix.length
    assert make(room).status == "queued"
    with pytest.raises(openai.BadRequestError, match=f"not {room + 1} behind the 3 of support"):
        make(room + 1)


def test_a_text_becomes_a_job_of_distillation(
    client: openai.OpenAI, uploaded: Uploaded, base: str
) -> None:
    text = uploaded(b"Blue Spice is a pub. " * 9, "facts.txt", purpose="user_data")
    settings = {"length": 16, "n_epochs": 2, "start": "spread"}
    method = {"type": "distill", "distill": {"hyperparameters": settings}}
    job = client.fine_tuning.jobs.create(
        model=base,
        training_file=text,
        method=method,  # type: ignore[arg-type]
    )
    assert job.method is not None
    assert job.method.type == "distill"
    with pytest.raises(openai.BadRequestError, match="purpose `user_data`"):
        client.fine_tuning.jobs.create(model=base, training_file=text)


@pytest.mark.parametrize(
    ("text", "settings", "words"),
    [
        (b"Blue Spice is a pub.", {}, "and a prefix of 64 positions holds them all"),
        (b"Blue Spice is a pub. " * 9, {"length": 512}, "give a longer text or a smaller length"),
        (b"\xef\xbb\xbf \n", {"length": 2}, "facts.txt holds no text"),
        (b"a " * 9_000_000, {}, "a job distils a text of at most"),
    ],
)
def test_a_text_that_cannot_be_distilled_is_refused_before_it_is_queued(
    client: openai.OpenAI,
    base: str,
    trained: RunningServer,
    text: bytes,
    settings: dict[str, Any],
    words: str,
) -> None:
    files = trained.services.training.files
    with files.stage() as staged:
        staged.write(text)
        known = CheckedFile("facts.txt", "user_data", len(text), 0, 0, "0" * 64)
        file = files.add("demo", staged.path, known)
    method = {"type": "distill", "distill": {"hyperparameters": settings}}
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        client.fine_tuning.jobs.create(
            model=base,
            training_file=file.id,
            method=method,  # type: ignore[arg-type]
        )
    assert caught.value.param == "training_file"


def test_jobs_are_listed_page_by_page_and_by_metadata(
    client: openai.OpenAI, uploaded: Uploaded, base: str
) -> None:
    file = uploaded()
    made = [
        client.fine_tuning.jobs.create(
            model=base, training_file=file, metadata={"batch": "seven", "n": str(n)}
        ).id
        for n in range(5)
    ]
    found = [job.id for job in client.fine_tuning.jobs.list(limit=2)]
    assert found[:5] == made[::-1]
    chosen = client.fine_tuning.jobs.list(
        limit=2, extra_query={"metadata[batch]": "seven", "metadata[n]": "3"}
    )
    assert [job.id for job in chosen.data] == [made[3]]
    assert not chosen.has_more


def test_jobs_are_listed_by_user_page_by_page(
    client: openai.OpenAI, uploaded: Uploaded, base: str
) -> None:
    file = uploaded()
    made: dict[str, list[str]] = {"kim": [], "lee": []}
    for number in range(3):
        for user, ids in made.items():
            job = client.fine_tuning.jobs.create(
                model=base,
                training_file=file,
                metadata={"n": str(number)},
                extra_body={"user": user},
            )
            ids.append(job.id)
    kims = {"user": "kim"}
    found = [job.id for job in client.fine_tuning.jobs.list(limit=2, extra_query=kims)]
    assert found == made["kim"][::-1]
    chosen = client.fine_tuning.jobs.list(extra_query={**kims, "metadata[n]": "1"}).data
    assert [job.id for job in chosen] == [made["kim"][1]]
    assert client.fine_tuning.jobs.list(extra_query={"user": "nobody"}).data == []


def test_a_finished_job_says_what_it_has_made(
    client: openai.OpenAI,
    uploaded: Uploaded,
    base: str,
    claim: Claim,
    trained: RunningServer,
    state: Path,
    tmp_path: Path,
) -> None:
    claims = trained.services.training.claims
    made = client.fine_tuning.jobs.create(model=base, training_file=uploaded(), suffix="voice")
    job = claim(made.id)
    claims.report(job, JobProgress(step=4, total_steps=8, trained_tokens=120, seconds_left=30))
    running = client.fine_tuning.jobs.retrieve(made.id)
    assert (running.status, running.trained_tokens) == ("running", None)
    assert running.estimated_finish is not None
    claims.save_checkpoint(job, state, 4, {"train_loss": 2.5})
    claims.add_events(
        job, [JobEvent(message="step 4", type="metrics", data={"step": 4, "train_loss": 2.5})]
    )
    table = tmp_path / "step_metrics.csv"
    table.write_text("step,train_loss\n4,2.5\n")
    claims.succeed(job, "voice@abc", {"bleu": 50.0}, [claims.store_result(job, table)])
    done = client.fine_tuning.jobs.retrieve(made.id)
    assert (done.status, done.fine_tuned_model, done.trained_tokens) == (
        "succeeded", "voice@abc", 120,
    )  # fmt: skip
    assert done.finished_at is not None
    assert done.estimated_finish is None
    assert done.result == {"bleu": 50.0}  # type: ignore[attr-defined]
    [result] = done.result_files
    assert client.files.content(result).text == table.read_text()
    shown = client.files.retrieve(result)
    assert (shown.filename, shown.purpose) == ("step_metrics.csv", "fine-tune-results")
    assert shown.expires_at is not None
    with pytest.raises(openai.BadRequestError, match="uploaded for the purpose"):
        client.fine_tuning.jobs.create(model=base, training_file=result)
    [checkpoint] = client.fine_tuning.jobs.checkpoints.list(made.id).data
    assert (checkpoint.step_number, checkpoint.metrics.train_loss) == (4, 2.5)
    assert checkpoint.fine_tuning_job_id == made.id
    assert checkpoint.fine_tuned_model_checkpoint == "voice:ckpt-step-4"
    with trained.client() as http:
        usage = http.get("/v1/usage?group_by=prefix").json()["data"]
    assert next(row["tokens_trained"] for row in usage if row["prefix"] == "voice") == 120


def test_a_failed_job_says_why(
    client: openai.OpenAI, uploaded: Uploaded, base: str, claim: Claim, trained: RunningServer
) -> None:
    made = client.fine_tuning.jobs.create(model=base, training_file=uploaded())
    claims = trained.services.training.claims
    claims.fail(claim(made.id), "invalid_data", "line 3 is too long", "training_file")
    error = client.fine_tuning.jobs.retrieve(made.id).error
    assert error is not None
    assert (error.code, error.message, error.param) == (
        "invalid_data", "line 3 is too long", "training_file",
    )  # fmt: skip


def test_events_come_newest_first_and_page_by_page(
    client: openai.OpenAI, uploaded: Uploaded, base: str, claim: Claim, trained: RunningServer
) -> None:
    made = client.fine_tuning.jobs.create(model=base, training_file=uploaded())
    new = [JobEvent(message=f"step {n}") for n in range(7)]
    trained.services.training.claims.add_events(claim(made.id), new)
    found = list(client.fine_tuning.jobs.list_events(made.id, limit=3))
    messages = [event.message for event in found]
    assert messages[:7] == [f"step {n}" for n in reversed(range(7))]
    assert "No worker" in "".join(messages) or "The job is queued" not in messages[0]
    assert "queued" in messages[-1]
    assert len({event.id for event in found}) == len(found)
    assert {event.object for event in found} == {"fine_tuning.job.event"}


def test_events_are_streamed_until_the_job_ends(
    client: openai.OpenAI, uploaded: Uploaded, base: str, claim: Claim, trained: RunningServer
) -> None:
    made = client.fine_tuning.jobs.create(model=base, training_file=uploaded())
    job, claims = claim(made.id), trained.services.training.claims
    heard: list[str] = []
    seen = threading.Event()

    def listen() -> None:
        with (
            trained.client() as http,
            http.stream("GET", f"/v1/fine_tuning/jobs/{made.id}/events?stream=true") as reply,
        ):
            assert reply.headers["content-type"].startswith("text/event-stream")
            for line in reply.iter_lines():
                if line:
                    heard.append(json.loads(line.removeprefix("data: "))["message"])
                    seen.set()

    thread = threading.Thread(target=listen)
    thread.start()
    assert seen.wait(10)
    claims.add_events(job, [JobEvent(message="in the middle")])
    claims.succeed(job, "voice@abc", {})
    thread.join(10)
    assert not thread.is_alive()
    assert heard[-2:] == ["in the middle", "The job has made voice@abc."]
    with trained.client() as http:  # the stream's place is free again
        while trained.services.streams.open:
            http.get("/health/live")


def test_a_job_is_cancelled_once(
    client: openai.OpenAI, uploaded: Uploaded, base: str, claim: Claim, trained: RunningServer
) -> None:
    made = client.fine_tuning.jobs.create(model=base, training_file=uploaded())
    job = claim(made.id)
    for _ in range(2):  # a client that has not heard the answer asks again
        assert client.fine_tuning.jobs.cancel(made.id).status == "cancelled"
    with pytest.raises(ClaimLost):
        trained.services.training.claims.succeed(job, "voice@abc", {})
    with pytest.raises(openai.BadRequestError, match="the job is cancelled"):
        client.fine_tuning.jobs.resume(made.id)
    said = [event.message for event in client.fine_tuning.jobs.list_events(made.id)]
    assert said.count("The job was cancelled.") == 1


def test_a_job_is_paused_and_resumed(
    client: openai.OpenAI, uploaded: Uploaded, base: str, claim: Claim
) -> None:
    made = client.fine_tuning.jobs.create(model=base, training_file=uploaded())
    assert client.fine_tuning.jobs.pause(made.id).status == "paused"
    with pytest.raises(StopIteration):
        claim(made.id)
    assert client.fine_tuning.jobs.resume(made.id).status == "queued"
    assert claim(made.id).id == made.id


@pytest.mark.parametrize("job_id", ["ftjob-" + "0" * 24, "nonsense"])
def test_a_job_that_is_not_there_is_not_found(client: openai.OpenAI, job_id: str) -> None:
    jobs = client.fine_tuning.jobs
    for ask in (
        jobs.retrieve, jobs.cancel, jobs.pause, jobs.resume, jobs.list_events,
        jobs.checkpoints.list,
    ):  # fmt: skip
        with pytest.raises(openai.NotFoundError):
            ask(job_id)


def test_what_is_no_id_of_a_job_is_told_in_words(client: openai.OpenAI) -> None:
    jobs = client.fine_tuning.jobs
    for ask in (
        jobs.retrieve, jobs.cancel, jobs.pause, jobs.resume, jobs.list_events,
        jobs.checkpoints.list, lambda each: jobs.list_events(each, after="x"),
    ):  # fmt: skip
        with pytest.raises(openai.NotFoundError) as caught:
            ask("nonsense")
        assert caught.value.param == "job_id"
        assert "job_id: 'nonsense' is not the id of a fine-tuning job; ids look like ftjob-" in (
            caught.value.message
        )
        assert "list them with GET /v1/fine_tuning/jobs" in caught.value.message
    with pytest.raises(openai.NotFoundError, match="after: 'file-1' is not the id of a fine-tun"):
        jobs.list(after="file-1")


@pytest.mark.parametrize("after", ["nonsense", "ftevent-" + "0" * 24 + "-1"])
def test_a_cursor_of_another_list_is_refused(
    client: openai.OpenAI, uploaded: Uploaded, base: str, after: str
) -> None:
    made = client.fine_tuning.jobs.create(model=base, training_file=uploaded())
    number = made.id.removeprefix("ftjob-")
    with pytest.raises(openai.BadRequestError, match="`after`") as caught:
        client.fine_tuning.jobs.list_events(made.id, after=after)
    assert f"its ids look like ftevent-{number}-7" in caught.value.message
    with pytest.raises(openai.BadRequestError, match="`after`") as caught:
        client.fine_tuning.jobs.checkpoints.list(made.id, after=f"ftevent-{number}-1")
    assert f"its ids look like ftckpt-{number}-7" in caught.value.message
