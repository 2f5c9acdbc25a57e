"""What a worker is told at its start."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """Plain values, which another process can read as JSON. Times are in seconds.

    `name` is this worker's in the catalog; no other worker has it at the same time. `folder` is a
    local one for files in transit. At most `train_jobs` jobs are trained together, by `threads`
    threads (0: as many as torch chooses), with the base model in `train_dtype`. `idle_exit` ends a
    worker that has had no job for so long (None: never). With `low_priority` other processes of the
    machine compute first.
    `load_fd` is the file descriptor of a server's `LoadSignal`, to which the worker gives way. A
    checkpoint is saved after every `checkpoint_every` seconds of training, or later where saving
    takes long, and the catalog hears of a job's steps every `tell_every` seconds. A job that has
    run for `turn` seconds may have to give its place to another tenant's.
    """

    name: str
    model: str
    catalog_url: str
    store: str
    folder: Path
    served_model_name: str | None = None
    device: str = "auto"
    threads: int = 0
    train_jobs: int = 8
    train_dtype: Literal["float32", "bfloat16"] = "float32"
    max_prefix_length: int = 512
    checkpoint_every: float = 20.0
    tell_every: float = 1.0
    turn: float = 300.0
    idle_exit: float | None = None
    load_fd: int | None = None
    low_priority: bool = False
    replica: str = "worker"
    log_level: str = "info"
    log_format: Literal["text", "json"] = "text"

    @classmethod
    def of(cls, settings: Mapping[str, Any], **more: Any) -> WorkerConfig:
        """That of a process with these settings, of which it takes those that it has too.

        `more` are fields that are no settings. The name is new, and the audit log tells this
        process from the server of the same settings.
        """
        known = {field.name for field in fields(cls)}
        shared = {name: value for name, value in settings.items() if name in known}
        replica = shared["replica"]
        name = f"{replica[:40]}-{secrets.token_hex(6)}"
        own = {"name": name, "folder": settings["data_dir"], "replica": f"{replica[:57]}-worker"}
        return cls(**{**shared, **own, **more})

    def to_json(self) -> str:
        """One line that `from_json` reads."""
        return json.dumps({**asdict(self), "folder": str(self.folder)})

    @classmethod
    def from_json(cls, text: str) -> WorkerConfig:
        """The configuration that another process has written; ValueError for any other text."""
        try:
            content: Mapping[str, Any] = json.loads(text)
            return cls(**{**content, "folder": Path(content["folder"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError("not the configuration of a worker") from error
