"""Training files and jobs, in OpenAI's shapes: bodies and replies.

A method's settings are called as OpenAI calls them where it has them (`n_epochs`, `batch_size`,
`learning_rate_multiplier`), and else as in `training.recipe.Recipe`, which checks their bounds.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StrictBool, StrictInt, model_validator

from app.api.schemas.base import Count, Reply, Seconds, StrictBody, few_keys
from app.api.schemas.generation import ModelName, UserName
from app.api.schemas.patterns import NAME
from app.jobs.ids import FILE_ID, JOB_ID

DISTILL = "distill"
INFIX = "infix"
"""A method that trains no prefix: its result is a file, which is not served."""
SUPERVISED = "supervised"
"""OpenAI's only method that has a meaning here: the same as `prefix`."""

FileId = Annotated[str, Field(pattern=FILE_ID)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Whole = Annotated[StrictInt, Field(ge=0, le=2**53)]
Epochs = Literal["auto"] | Annotated[StrictInt, Field(ge=1, le=100_000)]
BatchSize = Literal["auto"] | Annotated[StrictInt, Field(ge=1, le=4096)]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    few_keys(16, "keys of metadata"),
]


class Hyperparameters(StrictBody):
    """OpenAI's; `auto` is what fits the base model and the data."""

    n_epochs: Epochs = "auto"
    batch_size: BatchSize = "auto"
    learning_rate_multiplier: Literal["auto"] | Annotated[Number, Field(gt=0, le=1000)] = "auto"


class PrefixHyperparameters(Hyperparameters):
    """Of the methods that train a prefix; what is left out fits the base model and the data."""

    refused_fields = {
        "epochs": "n_epochs has this meaning",
        "learning_rate": "lr has this meaning",
        "seed": "it stands beside `method`",
    }

    lr: Number | None = None
    length: Whole | None = None
    hidden: Whole | None = None
    depth: Whole = 1
    modules: Annotated[list[Annotated[str, Field(max_length=16)]], Field(max_length=3)] = []
    prefix_dropout: Number = 0.0
    label_smoothing: Number = 0.0
    model_dropout: StrictBool | None = None
    max_source: Whole = 0
    max_steps: Whole = 0
    accumulate: Whole = 1
    warmup_steps: Whole | None = None
    clip_norm: Number = 1.0
    initial_words: Annotated[str, Field(min_length=1, max_length=10_000)] | None = None
    initial_task_mean: StrictBool = False
    keep: Literal["best", "last"] = "best"
    metric: Literal["loss", "bleu", "rouge_l", "slots"] = "loss"
    early_stopping: Whole = 0
    validate_every: Whole = 0
    validation_pairs: Whole = 128
    preset: Literal["full-data", "low-data"] = "full-data"


class DistillHyperparameters(StrictBody):
    """Of the method that makes a prefix of a text."""

    n_epochs: Epochs = "auto"
    batch_size: BatchSize = "auto"
    length: Annotated[StrictInt, Field(ge=1, le=1024)] | None = None
    max_steps: Annotated[StrictInt, Field(ge=1, le=100_000)] | None = None
    warmup_steps: Whole | None = None
    lr: Annotated[Number, Field(gt=0, le=10)] | None = None
    exchanges: Annotated[StrictInt, Field(ge=1, le=10_000)] | None = None
    part: Annotated[StrictInt, Field(ge=1, le=100_000)] | None = None
    start: Literal["first", "spread"] | None = None


class SupervisedSettings(StrictBody):
    """OpenAI's method, with its settings."""

    hyperparameters: Hyperparameters = Hyperparameters()


class PrefixSettings(StrictBody):
    """A method that trains a prefix, with its settings."""

    hyperparameters: PrefixHyperparameters = PrefixHyperparameters()


class DistillSettings(StrictBody):
    """Distillation, with its settings."""

    hyperparameters: DistillHyperparameters = DistillHyperparameters()


class MethodBody(StrictBody):
    """How to train: the `type`, and its settings in the field of the same name."""

    refused_fields = {
        "dpo": "preferences are not trained on",
        "reinforcement": "it is not trained by rewards",
    }

    type: Literal["supervised", "prefix", "prefix-direct", "embedding", "infix", "distill"]
    supervised: SupervisedSettings | None = None
    prefix: PrefixSettings | None = None
    prefix_direct: PrefixSettings | None = None
    embedding: PrefixSettings | None = None
    infix: PrefixSettings | None = None
    distill: DistillSettings | None = None

    @model_validator(mode="before")
    @classmethod
    def _rename(cls, content: Any) -> Any:
        if isinstance(content, dict) and "prefix-direct" in content:
            content = dict(content)
            content["prefix_direct"] = content.pop("prefix-direct")
        return content

    @model_validator(mode="after")
    def _check_settings(self) -> MethodBody:
        own = self.type.replace("-", "_")
        others = [
            name for name in type(self).model_fields if name not in ("type", own)
            and getattr(self, name) is not None
        ]  # fmt: skip
        if others:
            raise ValueError(f"the settings of `{self.type}` belong in `{self.type}`")
        return self

    @property
    def hyperparameters(self) -> StrictBody:
        """The settings of the method."""
        settings = getattr(self, self.type.replace("-", "_"))
        if settings is None:
            kinds = {SUPERVISED: SupervisedSettings, DISTILL: DistillSettings}
            settings = kinds.get(self.type, PrefixSettings)()
        chosen: StrictBody = settings.hyperparameters
        return chosen


class JobBody(StrictBody):
    """`POST /v1/fine_tuning/jobs`."""

    neutral_fields = {"integrations": ([],)}

    model: ModelName
    training_file: FileId
    validation_file: FileId | None = None
    method: MethodBody | None = None
    hyperparameters: Hyperparameters | None = None
    suffix: Annotated[str, Field(pattern=NAME)] | None = None
    alias: Annotated[str, Field(max_length=64)] | None = None
    on: ModelName | None = None
    seed: Annotated[StrictInt, Field(ge=0, le=2**63 - 1)] | None = None
    metadata: Metadata | None = None
    user: Annotated[UserName, Field(min_length=1)] | None = None


class FileForm(StrictBody):
    """`POST /v1/files`: the fields of the form."""

    model_config = ConfigDict(extra="forbid")

    file: Annotated[str, Field(json_schema_extra={"format": "binary"})]
    purpose: Literal["fine-tune", "user_data"]
    user: Annotated[str, Field(min_length=1, max_length=512)] | None = None


class FileReply(Reply):
    """A file; `bytes` is its size, `examples` and `user` are not OpenAI's."""

    object: Literal["file"] = "file"
    id: FileId
    bytes: Count
    created_at: Seconds
    expires_at: Seconds | None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    status_details: None = None
    examples: Count
    user: str | None


class FileDeleted(Reply):
    """A file that is gone."""

    object: Literal["file"] = "file"
    id: FileId
    deleted: Literal[True] = True


class FilePage(Reply):
    """A part of a list of files."""

    object: Literal["list"] = "list"
    data: list[FileReply]
    first_id: str | None
    last_id: str | None
    has_more: bool


class JobErrorReply(Reply):
    """Why a job has failed."""

    code: str
    message: str
    param: str | None


class HyperparametersReply(Reply):
    """OpenAI's three, as they were asked for."""

    n_epochs: int | Literal["auto"]
    batch_size: int | Literal["auto"]
    learning_rate_multiplier: float | Literal["auto"]


class JobReply(Reply):
    """A fine-tuning job. `step`, `total_steps`, `result`, `suffix`, `alias`, `on` and `user` are
    not OpenAI's."""

    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    id: Annotated[str, Field(pattern=JOB_ID)]
    created_at: Seconds
    started_at: Seconds | None
    finished_at: Seconds | None
    estimated_finish: Seconds | None
    status: Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
    error: JobErrorReply | None
    model: str
    fine_tuned_model: str | None
    organization_id: str
    method: dict[str, Any]
    hyperparameters: HyperparametersReply
    seed: Count
    training_file: str
    validation_file: str | None
    result_files: list[str]
    integrations: list[str]
    trained_tokens: Count | None
    step: Count
    total_steps: Count
    result: dict[str, Any] | None
    suffix: str
    alias: str | None
    on: str | None
    metadata: dict[str, str] | None
    user: str | None


class JobPage(Reply):
    """A part of a list of jobs."""

    object: Literal["list"] = "list"
    data: list[JobReply]
    has_more: bool


class JobEventReply(Reply):
    """Something that happened to a job."""

    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    id: str
    created_at: Seconds
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any] | None


class JobEventPage(Reply):
    """A part of a list of events."""

    object: Literal["list"] = "list"
    data: list[JobEventReply]
    has_more: bool


class JobCheckpointReply(Reply):
    """A state that a job has saved. Only the finished version is served, not this."""

    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    id: str
    created_at: Seconds
    fine_tuning_job_id: str
    fine_tuned_model_checkpoint: str
    step_number: Count
    metrics: dict[str, Any]


class JobCheckpointPage(Reply):
    """A part of a list of checkpoints."""

    object: Literal["list"] = "list"
    data: list[JobCheckpointReply]
    first_id: str | None
    last_id: str | None
    has_more: bool
