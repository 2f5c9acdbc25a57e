"""The local folder of one worker process; what killed ones have left is removed."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOCK = "lock"


@contextmanager
def workspace(root: Path) -> Iterator[Path]:
    """A new folder below `root` for the length of the block.

    A lock says that it is in use, also after this process was killed: then the next one removes it.
    """
    root.mkdir(parents=True, exist_ok=True)
    for left in root.iterdir():
        _remove_unused(left)
    folder = Path(tempfile.mkdtemp(dir=root))
    with (folder / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_unused(folder: Path) -> None:
    try:
        with (folder / _LOCK).open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # in use, just being made, or removed by another process
        return
