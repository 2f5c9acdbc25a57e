"""A job's prefix becomes a version of the registry, and an alias moves to it if its gate allows."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial

from app.errors import GateNotPassed, InvalidRequest
from app.evaluation.evaluator import EngineRunner, Evaluator
from app.evaluation.gate_score import gate_examples, score_examples
from app.evaluation.text_pairs import default_template
from app.jobs.types import ClaimedJob
from app.prefix.codec import encode
from app.prefix.composition import compose
from app.prefix.prefix import Prefix
from app.registry.quality_gates import QualityGate, write_when_scored
from app.registry.types import Quota, Version
from app.tenancy.audit.log import AuditedCall
from app.training.publish import describe
from app.worker.resources import Resources


@dataclass(frozen=True)
class PublishedResult:
    """The version that a job has made; `refusal` says why its alias has not moved."""

    version: Version
    refusal: str | None = None

    @property
    def name(self) -> str:
        """`name@digest`."""
        return f"{self.version.name}@{self.version.digest}"


def publish_result(
    job: ClaimedJob,
    prefix: Prefix,
    resources: Resources,
    runner: EngineRunner,
    on: Prefix | None = None,
) -> PublishedResult:
    """Make `prefix`, which was trained behind `on` if that is given, a version of the job's name.

    A gate scores it behind `on`, as requests use it. The same prefix again is the same version. An
    alias whose gate the version does not pass stays where it is. Raises ClaimLost if the job is no
    longer the worker's, QuotaExceeded, InvalidRequest, and what the catalog and the store raise.
    """
    alias = job.spec.alias
    try:
        return PublishedResult(_add(job, prefix, resources, runner, alias, on))
    except (GateNotPassed, InvalidRequest) as refused:
        if alias is None:
            raise
        made = _add(job, prefix, resources, runner, None, on)
        return PublishedResult(made, refused.message)


def _add(
    job: ClaimedJob,
    prefix: Prefix,
    resources: Resources,
    runner: EngineRunner,
    alias: str | None,
    on: Prefix | None,
) -> Version:
    registry, limits = resources.registry, resources.tenants.get(job.tenant).limits
    facts = {"action": "fine_tuning.job", "by": "worker", "job": job.id}
    actor = AuditedCall(resources.audit, facts, tenant=job.tenant)

    async def write(scores: dict[tuple[str, str], float]) -> Version:
        with registry.stage() as staged:
            staged.write(encode(prefix))
            version, _ = registry.add_version(
                job.tenant,
                job.spec.suffix,
                describe(prefix),
                staged.path,
                alias=alias,
                quota=Quota(limits.max_prefixes, limits.max_bytes),
                scores=scores,
                user=job.spec.user,
                guard=partial(resources.claims.check_held, job),
                actor=actor,
            )
            return version

    async def score(_: str, gate: QualityGate) -> float:
        model = resources.model
        whole = prefix if on is None else compose([on, prefix])
        has_encoder = model.encoder_decoder is not None
        template = whole.metadata.input_template
        return await score_examples(
            Evaluator(model, whole.to(model.device, model.dtype), runner),
            template or default_template(model.text, has_encoder=has_encoder),
            gate_examples(gate.examples),
            gate.metric,
        )

    return asyncio.run(write_when_scored(write, score))
