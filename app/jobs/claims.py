"""A worker's right to a job: taken by a lease, kept by heartbeats, given back or lost.

Each change of a job is one transaction that checks the lease's token, so that whatever dies at
whatever moment, a job is in one state and has at most one worker. A lease whose worker is lost ends
by itself, and the job goes on elsewhere from its last checkpoint. The same on SQLite and
PostgreSQL; times are those of the database, not of the workers' clocks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, select, update

from app.db.change_log import ChangeKind, note
from app.db.database import Database
from app.db.schema import tenants, training_files, training_jobs
from app.errors import NotFound
from app.jobs import checkpoints, contents, events, queue, results, trained_tokens, workers
from app.jobs.results import StoredResult
from app.jobs.rows import Clock, now_of
from app.jobs.types import ClaimedJob, ClaimLost, JobEvent, JobProgress, JobStatus, Order
from app.registry.storage.store import ObjectStore

LEASE_S = 60.0
"""Seconds after which a worker that says nothing has lost its jobs."""


class JobClaims:
    """What workers ask of the catalog. Synchronous and thread-safe.

    Besides the errors that each method names, any may raise Unavailable (the catalog or the store
    is busy), and then nothing has changed. ClaimLost if the lease has ended: the job is another's,
    or nobody's any more.
    """

    def __init__(
        self,
        catalog: Database,
        objects: ObjectStore,
        *,
        lease_s: float = LEASE_S,
        clock: Clock | None = None,
    ) -> None:
        """`lease_s` is how long a claim lasts after each heartbeat; `clock` is for tests."""
        self.lease_s = lease_s
        self._catalog, self._objects, self._clock = catalog, objects, clock

    def claim(self, worker: str, base_fingerprint: str, limit: int) -> list[ClaimedJob]:
        """At most `limit` queued jobs for this base model, which run from now on.

        A job that has lost a worker since its last checkpoint comes alone: it may have killed it.
        Also puts back into the queue what lost workers have held. `worker` is a name of at most 64
        characters, for events and logs.
        """
        self.announce(worker, base_fingerprint)
        if not self.look(base_fingerprint):
            return []
        with self._catalog.write() as (connection, epoch):
            note(connection, epoch, ChangeKind.TRAINING, "")
            now = now_of(connection, self._clock)
            chosen = queue.choose(connection, base_fingerprint, limit, now)
            for tenant in sorted({row.tenant_id for row in chosen}):
                turn = update(tenants).where(tenants.c.id == tenant).values(training_turn=epoch)
                connection.execute(turn)
            taken = {
                row.id: workers.take(connection, row, worker, self.lease_s, now)
                for row in sorted(chosen, key=lambda row: int(row.id))  # as all lock rows of jobs
            }
        return [job for row in chosen if (job := taken[row.id]) is not None]

    def announce(self, worker: str, base_fingerprint: str) -> None:
        """Notes that the worker takes jobs for this base model, unless it was noted just now."""
        with self._catalog.read() as connection:
            now = now_of(connection, self._clock)
            if workers.is_known(connection, worker, base_fingerprint, now):
                return
        with self._catalog.append() as connection:
            workers.note_seen(connection, worker, base_fingerprint, now)

    def look(self, base_fingerprint: str) -> bool:
        """Whether `claim` may find a job now."""
        self.expire()
        with self._catalog.read() as connection:
            now = now_of(connection, self._clock)
            return bool(queue.choose(connection, base_fingerprint, 1, now))

    def expire(self) -> int:
        """Ends the leases that have run out; how many. Their jobs are queued again.

        A job that has lost `workers.MAX_LOSSES` workers since its last checkpoint fails.
        """
        query = select(training_jobs).where(
            training_jobs.c.token.is_not(None), training_jobs.c.status.in_(workers.OPEN_STATUSES)
        )
        with self._catalog.read() as connection:
            now = now_of(connection, self._clock)
            late = query.where(training_jobs.c.lease_until < now).limit(1)
            if connection.execute(late).first() is None:
                return 0
        with self._catalog.write() as (connection, epoch):
            note(connection, epoch, ChangeKind.TRAINING, "")
            now = now_of(connection, self._clock)
            late = query.where(training_jobs.c.lease_until < now).order_by(training_jobs.c.id)
            return sum(workers.end_lease(connection, row, now) for row in connection.execute(late))

    def heartbeat(self, worker: str, jobs: Collection[ClaimedJob]) -> Mapping[str, Order]:
        """Keeps the leases of these jobs; what to do with each, by id."""
        orders: dict[str, Order] = {}
        spent: dict[str, bool] = {}
        with self._catalog.append() as connection:
            now = now_of(connection, self._clock)
            rows = {
                row.public_id: row
                for row in connection.execute(
                    select(training_jobs).where(
                        training_jobs.c.public_id.in_([job.id for job in jobs])
                    )
                )
            }
            held = [job for job in jobs if job.id in rows]
            for job in sorted(held, key=lambda each: rows[each.id].id):
                if job.tenant not in spent:
                    spent[job.tenant] = queue.must_stop(connection, job.tenant, now)
                orders[job.id] = workers.renew_lease(
                    connection, job, worker, now + self.lease_s, must_stop=spent[job.tenant]
                )
        return {job.id: orders.get(job.id, Order.LOST) for job in jobs}

    def check_held(self, job: ClaimedJob, connection: Connection) -> None:
        """ClaimLost if the lease has ended, inside the caller's writing transaction."""
        self._held(connection, job)

    def add_events(self, job: ClaimedJob, new: Sequence[JobEvent]) -> None:
        """Adds events to the job, in order."""
        with self._catalog.append() as connection:
            row, now = self._held(connection, job)
            events.add(connection, row.id, new, now)

    def report(self, job: ClaimedJob, progress: JobProgress) -> None:
        """Notes how far the job is; tokens that were trained since are counted for its tenant."""
        with self._catalog.append() as connection:
            row, now = self._held(connection, job)
            values: dict[str, Any] = {"step": progress.step, "total_steps": progress.total_steps}
            if progress.seconds_left is not None:
                values["estimated_finish"] = int(now + progress.seconds_left)
            # what is computed again after a checkpoint is not counted again
            new = progress.trained_tokens - row.trained_tokens
            if new > 0:
                values["trained_tokens"] = progress.trained_tokens
                trained_tokens.count(connection, job.tenant, job.spec.suffix, new, now)
            self._set(connection, row.id, values)

    def read_file(self, job: ClaimedJob, which: str, path: Path) -> str:
        """Copies the job's file, `training` or `validation`, to a local path; the upload's name.

        NotFound if the job has no such file, or if it is gone.
        """
        file_id = {"training": job.spec.training_file, "validation": job.spec.validation_file}
        with self._catalog.append() as connection:
            self._held(connection, job)
            query = select(training_files).where(
                training_files.c.tenant_id == job.tenant,
                training_files.c.public_id == file_id[which],
            )
            row = connection.execute(query).one_or_none()
        file = None if row is None else self._objects.open(row.owner, row.digest)
        if row is None or file is None:
            raise NotFound(f"the job's {which} file is gone", param=f"{which}_file")
        contents.fetch(file, path)
        return str(row.filename)

    def save_checkpoint(
        self, job: ClaimedJob, path: Path, step: int, metrics: Mapping[str, Any]
    ) -> None:
        """Stores the file at `path` as the state after `step` steps; it replaces earlier ones."""
        with self._catalog.append() as connection:
            _, now = self._held(connection, job)
        new = contents.store_copy(self._catalog, self._objects, job.tenant, path, now)
        try:
            with self._catalog.write() as (connection, epoch):
                note(connection, epoch, ChangeKind.TRAINING, job.tenant, job.id)
                row, now = self._held(connection, job)
                replaced = checkpoints.add(connection, row.id, new, step, metrics, now)
                self._set(connection, row.id, {"losses": 0})
        except Exception:
            contents.remove(self._catalog, self._objects, [new.key])
            raise
        contents.remove(self._catalog, self._objects, replaced)

    def load_checkpoint(self, job: ClaimedJob, path: Path) -> bool:
        """Copies the job's last checkpoint to a local path; False if there is none."""
        with self._catalog.append() as connection:
            row, _ = self._held(connection, job)
            found = checkpoints.newest(connection, row.id)
        file = None if found is None else self._objects.open(found.owner, found.digest)
        if file is None:
            return False
        contents.fetch(file, path)
        return True

    def metrics(self, job: ClaimedJob) -> list[dict[str, Any]]:
        """What the job's events tell of its steps, of all attempts."""
        with self._catalog.append() as connection:
            row, _ = self._held(connection, job)
            return results.metrics(connection, row.id)

    def store_result(self, job: ClaimedJob, path: Path) -> StoredResult:
        """Stores a file that the job leaves; it is the tenant's once the job has ended with it."""
        with self._catalog.append() as connection:
            _, now = self._held(connection, job)
        return results.store(self._catalog, self._objects, job, path, now)

    def discard(self, files: Sequence[StoredResult]) -> None:
        """Removes stored results from the store if they are nobody's: the job did not succeed."""
        going = [each.content.key for each in files]
        contents.remove(self._catalog, self._objects, going)

    def succeed(
        self,
        job: ClaimedJob,
        fine_tuned_model: str | None,
        result: Mapping[str, Any],
        files: Sequence[StoredResult] = (),
    ) -> None:
        """Ends the job. `fine_tuned_model` is the version, `name@digest`, if it has made one."""
        made = fine_tuned_model or " and ".join(each.filename for each in files)
        told = JobEvent(message=f"The job has made {made}.", data=dict(result))
        values: dict[str, Any] = {"fine_tuned_model": fine_tuned_model, "result": dict(result)}
        with self._catalog.write() as (connection, epoch):
            note(connection, epoch, ChangeKind.TRAINING, job.tenant, job.id)
            row, now = self._held(connection, job)
            values["result_files"] = results.add(connection, job, files, now)
            going = self._finish(connection, row, JobStatus.SUCCEEDED, values, told, now)
        contents.remove(self._catalog, self._objects, going)

    def fail(
        self,
        job: ClaimedJob,
        code: str,
        message: str,
        param: str | None = None,
        files: Sequence[StoredResult] = (),
    ) -> None:
        """Ends the job with an error, which names the files that it leaves."""
        try:
            with self._catalog.write() as (connection, epoch):
                note(connection, epoch, ChangeKind.TRAINING, job.tenant, job.id)
                row, now = self._held(connection, job)
                ids = results.add(connection, job, files, now)
                for file, file_id in zip(files, ids, strict=True):
                    message += f" The job leaves {file.filename} as the file {file_id}."
                error, told = events.failure(code, message, param)
                values = {"error": error, "result_files": ids}
                going = self._finish(connection, row, JobStatus.FAILED, values, told, now)
        except ClaimLost:
            self.discard(files)
            raise
        contents.remove(self._catalog, self._objects, going)

    def choose_yielding(
        self, base_fingerprint: str, jobs: Sequence[ClaimedJob]
    ) -> ClaimedJob | None:
        """The first of a worker's jobs whose tenant gives a place to another tenant's job.

        None unless a job waits whose tenant has fewer running jobs for its weight.
        """
        with self._catalog.read() as connection:
            now, holders = now_of(connection, self._clock), {job.tenant for job in jobs}
            tenant = queue.choose_yielding(connection, base_fingerprint, holders, now)
        return next((job for job in jobs if job.tenant == tenant), None)

    def release(self, job: ClaimedJob, *, yields: bool = False) -> None:
        """Gives the job back: another worker goes on from its last checkpoint, unless it is paused.

        A worker does so when it is told to pause the job or when it stops. With `yields` the job
        gives its place to another tenant's, and comes after its own tenant's jobs that wait now.
        """
        with self._catalog.append() as connection:
            row, now = self._held(connection, job)
            text = "The worker gave the job back; another one goes on with it."
            if yields:
                text = "The job waits, because other tenants' jobs have their turn."
            if queue.must_stop(connection, job.tenant, now):
                text = "The day's training tokens are used up; the job goes on tomorrow (UTC)."
            workers.give_back(connection, row, JobEvent(message=text), row.losses, now)
            if yields:
                self._set(connection, row.id, {"lease_until": now})

    def release_in_trouble(self, job: ClaimedJob, code: str, message: str) -> None:
        """As `release`, since this worker cannot go on: its disk is full, for example.

        That counts as a lost worker; the last one that may be lost fails the job with this error.
        """
        going: list[tuple[str, str]] = []
        with self._catalog.append() as connection:
            row, now = self._held(connection, job)
            losses = row.losses + 1
            if losses < workers.MAX_LOSSES or row.status != JobStatus.RUNNING.value:
                text = f"The worker gave the job back: {message}"
                told = JobEvent(message=text, level="warn", data={"code": code})
                workers.give_back(connection, row, told, losses, now)
            else:
                error, told = events.failure(code, message)
                values = {"error": error, "losses": losses}
                going = self._finish(connection, row, JobStatus.FAILED, values, told, now)
        contents.remove(self._catalog, self._objects, going)

    def _held(self, connection: Connection, job: ClaimedJob) -> tuple[Row[Any], float]:
        """The job's row, which nobody else changes before the transaction ends, and the time.

        ClaimLost if the lease has ended; otherwise it is renewed.
        """
        now = now_of(connection, self._clock)
        held = (
            update(training_jobs)
            .where(
                training_jobs.c.public_id == job.id,
                training_jobs.c.token == job.token,
                training_jobs.c.status.in_(workers.OPEN_STATUSES),
            )
            .values(lease_until=now + self.lease_s)
            .returning(training_jobs)
        )
        row = connection.execute(held).one_or_none()
        if row is None:
            raise ClaimLost(f"the job {job.id} was cancelled or went to another worker")
        return row, now

    def _finish(
        self,
        connection: Connection,
        row: Row[Any],
        status: JobStatus,
        values: Mapping[str, Any],
        told: JobEvent,
        now: float,
    ) -> list[tuple[str, str]]:
        """Ends the job; the contents of its checkpoints, which are to be removed."""
        ended = {"status": status.value, "finished_at": int(now), "estimated_finish": None}
        self._set(connection, row.id, {**values, **ended, **workers.NO_LEASE})
        events.add(connection, row.id, [told], now)
        return checkpoints.release(connection, row.id)

    def _set(self, connection: Connection, job: int, values: Mapping[str, Any]) -> None:
        connection.execute(update(training_jobs).where(training_jobs.c.id == job).values(values))
