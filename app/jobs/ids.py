"""Public ids of files, jobs, events and checkpoints: what they look like, and what is none."""

from __future__ import annotations

import re
import secrets

from app.errors import InvalidRequest, NotFound
from app.prefix.strict_json import printable

FILE_ID = r"^file-[0-9a-f]{24}$"
JOB_ID = r"^ftjob-[0-9a-f]{24}$"

NO_ID = {
    FILE_ID: "is not the id of a file; ids look like file-3c1f6d0f2b9a4e7d8c5b6a79; "
    "list them with GET /v1/files",
    JOB_ID: "is not the id of a fine-tuning job; ids look like ftjob-9d1c2b3a4f5e6d7c8b9a0f1e; "
    "list them with GET /v1/fine_tuning/jobs",
}
"""What is said of a text that has not the form."""

_NUMBERED = re.compile(r"(ftevent|ftckpt)-([0-9a-f]{24})-(\d{1,15})")


def new_id(kind: str) -> str:
    """A new random public id, as in `file-3f…`."""
    return f"{kind}-{secrets.token_hex(12)}"


def check_id(form: str, text: str, param: str) -> str:
    """The text itself if it is an id of the form `FILE_ID` or `JOB_ID`.

    NotFound if not, as for an id that nothing has; `param` names where the text was.
    """
    if not re.fullmatch(form, text):
        raise NotFound(f"{param}: {printable(text)} {NO_ID[form]}", param=param)
    return text


def numbered_id(kind: str, job_id: str, number: int) -> str:
    """The id of an event (`ftevent`) or checkpoint (`ftckpt`) of a job."""
    return f"{kind}-{job_id.removeprefix('ftjob-')}-{number}"


def number_of(public_id: str, kind: str, job_id: str) -> int:
    """The number in the id of one of the job's events or checkpoints, the last that was seen.

    InvalidRequest for other texts; NotFound if `job_id` is none.
    """
    check_id(JOB_ID, job_id, "job_id")
    found = _NUMBERED.fullmatch(public_id)
    if found is None or (found[1], f"ftjob-{found[2]}") != (kind, job_id):
        raise InvalidRequest(
            f"`after`: {printable(public_id)} is not an id that this list has given; its ids look "
            f"like {numbered_id(kind, job_id, 7)}",
            param="after",
        )
    return int(found[3])
