"""`/v1/fine_tuning/jobs`: prefixes that the server trains, as OpenAI runs fine-tuning."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from typing import Annotated

from fastapi import Query, Request, Response

from app.api.dependencies import (
    Caller,
    CallerDep,
    EngineDep,
    GenerationsDep,
    LimitsDep,
    StreamsDep,
    TrainingDep,
)
from app.api.errors import ErrorShape
from app.api.generation.sse import EventStream, write_event
from app.api.new_job import SHORT_TEXT, JobReader
from app.api.routing import EVENTS, JSON, Answer, Events, Router
from app.api.schemas.training import (
    DISTILL,
    HyperparametersReply,
    JobBody,
    JobCheckpointPage,
    JobCheckpointReply,
    JobEventPage,
    JobEventReply,
    JobPage,
    JobReply,
)
from app.api.schemas.users import UserQuery
from app.errors import InvalidRequest
from app.jobs.ids import number_of, numbered_id
from app.jobs.services import TrainingServices
from app.jobs.types import OPEN, TEXT, Job, JobCheckpoint, JobEvent
from app.registry.types import Quota
from app.tenancy.auth.principal import Scope

router = Router("fine-tuning", "/v1/fine_tuning/jobs")

_SCOPES = [Scope.TRAIN]
_POLL_S = 0.5
"""Seconds between two looks for new events of a stream."""
_METADATA = 16

After = Annotated[str | None, Query(max_length=64)]
Limit = Annotated[int, Query(ge=1, le=100)]


@router.route(
    "POST",
    "",
    answers=JobReply,
    scopes=_SCOPES,
    counted=True,
    error_shape=ErrorShape.OPENAI,
    errors=[404, 409],
)
async def create_job(
    body: JobBody,
    training: TrainingDep,
    generations: GenerationsDep,
    limits: LimitsDep,
    caller: CallerDep,
) -> Response:
    """Queues a job that trains a prefix on the frozen base model.

    Its settings and its files are checked first. A worker trains it when its turn comes; then
    `fine_tuned_model` names the version, which requests can use at once.
    """
    tenant = caller.tenant
    reader = JobReader(generations.model, generations.selector, limits.max_prefix_length)
    reader.check_model(body)
    file = await caller.read(training.files.get, tenant, body.training_file, param="training_file")
    validation = None
    if body.validation_file is not None:
        validation = await caller.read(
            training.files.get, tenant, body.validation_file, param="validation_file"
        )
    on = await reader.resolve_on(tenant, body)
    encoding = caller.workers.text
    spec = await encoding.run(tenant, reader.make_spec, body, on, file, validation)
    if spec.method == DISTILL and file.purpose == TEXT and file.nbytes <= SHORT_TEXT:
        data = await caller.workers.store.run(tenant, training.files.read, tenant, file.id)
        await encoding.run(tenant, reader.check_text, spec, file, data)
    mine = caller.principal.limits
    quota = Quota(mine.max_prefixes, mine.max_bytes)
    made = await caller.write(
        training.jobs.create, tenant, spec, max_queued=mine.max_queued_jobs, quota=quota
    )
    return _reply(made).response()


@router.route(
    "GET", "", answers=JobPage, scopes=_SCOPES, error_shape=ErrorShape.OPENAI, errors=[404]
)
async def list_jobs(
    request: Request,
    training: TrainingDep,
    caller: CallerDep,
    after: After = None,
    limit: Limit = 20,
    user: UserQuery = None,
) -> Response:
    """The caller's jobs, the newest first; with `user`, those of that user.

    `metadata[key]=value` asks for those that have it.
    """
    part = await caller.read(
        training.jobs.list,
        caller.tenant,
        after=after,
        limit=limit,
        metadata=_metadata_filter(request),
        user=user,
    )
    return JobPage(data=[_reply(job) for job in part.items], has_more=part.has_more).response()


@router.route("GET", "/{job_id}", answers=JobReply, scopes=_SCOPES, error_shape=ErrorShape.OPENAI)
async def get_job(job_id: str, training: TrainingDep, caller: CallerDep) -> Response:
    """One job as it is now."""
    return _reply(await caller.read(training.jobs.get, caller.tenant, job_id)).response()


@router.route(
    "GET",
    "/{job_id}/events",
    answers=Answer({JSON: JobEventPage, EVENTS: Events(JobEventReply)}),
    scopes=_SCOPES,
    error_shape=ErrorShape.OPENAI,
)
async def list_job_events(
    job_id: str,
    training: TrainingDep,
    streams: StreamsDep,
    limits: LimitsDep,
    engine: EngineDep,
    caller: CallerDep,
    after: After = None,
    limit: Limit = 20,
    stream: bool = False,
) -> Response:
    """What has happened to a job, the newest first.

    With `stream=true`, all events from the first on (or those that follow `after`), as they come.
    The stream ends with the job, when the request's time is over, or when the server stops.
    """
    last = None if after is None else number_of(after, "ftevent", job_id)
    if stream:
        await caller.read(training.jobs.get, caller.tenant, job_id)
        until = time.monotonic() + limits.request_timeout

        def is_over() -> bool:
            return time.monotonic() >= until or engine.progress().draining

        found = _new_events(training, caller, job_id, last or 0, is_over)
        slot = ExitStack()
        slot.enter_context(streams.slot(caller.tenant))
        return EventStream(found, dict, slot.close)
    part = await caller.read(training.jobs.events, caller.tenant, job_id, after=last, limit=limit)
    data = [_event(job_id, event) for event in part.items]
    return JobEventPage(data=data, has_more=part.has_more).response()


@router.route(
    "GET",
    "/{job_id}/checkpoints",
    answers=JobCheckpointPage,
    scopes=_SCOPES,
    error_shape=ErrorShape.OPENAI,
)
async def list_job_checkpoints(
    job_id: str,
    training: TrainingDep,
    caller: CallerDep,
    after: After = None,
    limit: Limit = 10,
) -> Response:
    """The states that a job has saved, the newest first, with their metrics."""
    last = None if after is None else number_of(after, "ftckpt", job_id)
    job = await caller.read(training.jobs.get, caller.tenant, job_id)
    part = await caller.read(
        training.jobs.checkpoints, caller.tenant, job_id, after=last, limit=limit
    )
    data = [_checkpoint(job, each) for each in part.items]
    ends = (data[0].id, data[-1].id) if data else (None, None)
    return JobCheckpointPage(
        data=data, first_id=ends[0], last_id=ends[1], has_more=part.has_more
    ).response()


@router.route(
    "POST", "/{job_id}/cancel", answers=JobReply, scopes=_SCOPES, error_shape=ErrorShape.OPENAI
)
async def cancel_job(job_id: str, training: TrainingDep, caller: CallerDep) -> Response:
    """Ends a job; its worker stops within a step of hearing of it."""
    return _reply(await caller.write(training.jobs.cancel, caller.tenant, job_id)).response()


@router.route(
    "POST", "/{job_id}/pause", answers=JobReply, scopes=_SCOPES, error_shape=ErrorShape.OPENAI
)
async def pause_job(job_id: str, training: TrainingDep, caller: CallerDep) -> Response:
    """Stops a job until it is resumed; a running one saves its state first."""
    return _reply(await caller.write(training.jobs.pause, caller.tenant, job_id)).response()


@router.route(
    "POST", "/{job_id}/resume", answers=JobReply, scopes=_SCOPES, error_shape=ErrorShape.OPENAI
)
async def resume_job(job_id: str, training: TrainingDep, caller: CallerDep) -> Response:
    """Queues a paused job again; it goes on from its state."""
    return _reply(await caller.write(training.jobs.resume, caller.tenant, job_id)).response()


async def _new_events(
    training: TrainingServices,
    caller: Caller,
    job_id: str,
    since: int,
    is_over: Callable[[], bool],
) -> AsyncIterator[bytes]:
    """The job's events as they come, until it has ended or `is_over`."""
    is_open = True
    while is_open:
        found, status = await caller.read(training.jobs.new_events, caller.tenant, job_id, since)
        for event in found:
            yield write_event(_event(job_id, event).model_dump())
            since = event.sequence
        if not found:
            is_open = status in OPEN and not is_over()
            await asyncio.sleep(_POLL_S if is_open else 0)


def _metadata_filter(request: Request) -> dict[str, str] | None:
    """What `metadata[key]=value` in the query asks for."""
    found = {
        name[len("metadata[") : -1]: value
        for name, value in request.query_params.items()
        if name.startswith("metadata[") and name.endswith("]")
    }
    if len(found) > _METADATA:
        raise InvalidRequest(f"at most {_METADATA} keys of metadata can be asked for")
    return found or None


def _reply(job: Job) -> JobReply:
    spec, asked = job.spec, dict(job.spec.asked)
    usual = {name: asked.get(name, "auto") for name in HyperparametersReply.model_fields}
    return JobReply.of(
        job,
        status=job.status.value,
        error=None if job.error is None else vars(job.error),
        model=spec.base_model,
        organization_id=job.tenant,
        method={"type": spec.method, spec.method: {"hyperparameters": asked}},
        hyperparameters=HyperparametersReply(**usual),
        seed=spec.seed,
        training_file=spec.training_file,
        validation_file=spec.validation_file,
        result_files=list(job.result_files),
        integrations=[],
        trained_tokens=job.trained_tokens if job.finished_at is not None else None,
        suffix=spec.suffix,
        alias=spec.alias,
        on=spec.on,
        metadata=spec.metadata,
        user=spec.user,
    )


def _event(job_id: str, event: JobEvent) -> JobEventReply:
    return JobEventReply.of(event, id=numbered_id("ftevent", job_id, event.sequence))


def _checkpoint(job: Job, saved: JobCheckpoint) -> JobCheckpointReply:
    return JobCheckpointReply(
        id=numbered_id("ftckpt", job.id, saved.step),
        created_at=saved.created_at,
        fine_tuning_job_id=job.id,
        fine_tuned_model_checkpoint=f"{job.spec.suffix}:ckpt-step-{saved.step}",
        step_number=saved.step,
        metrics={"step": saved.step, **saved.metrics},
    )
