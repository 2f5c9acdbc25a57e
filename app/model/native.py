"""Native code: a C source of this package, compiled for this machine, kept in a private folder.

A library is named by what it was made from (source, constants, compiler, processor), so one of
another machine is never loaded. It is linked without OpenMP's library: its symbols are those of
the one that torch has loaded, and there is one team of workers.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_COMPILERS = ("cc", "gcc")
_FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fopenmp", "-fPIC")
_TIMEOUT_S = 60.0
_PROCESSOR_FACTS = {
    "vendor_id", "cpu family", "model", "model name", "stepping", "flags",
    "cpu implementer", "cpu architecture", "cpu variant", "cpu part", "cpu revision", "features",
}  # fmt: skip
_MAX_LIBRARIES = 32
"""As many are kept in the folder; the oldest go first."""


class NoNativeCode(Exception):
    """There is no native code: no compiler, an error of it, or a folder that cannot be trusted."""


def default_folder() -> Path:
    """Where libraries are kept if nobody says otherwise: in the user's own cache."""
    try:
        return Path.home() / ".cache" / "polyprefix"
    except RuntimeError as error:
        raise NoNativeCode(f"the user has no home folder: {error}") from error


def load_native(source: Path, constants: Mapping[str, int], folder: Path) -> ctypes.CDLL:
    """The library of `source`, compiled with `constants` unless `folder` has it.

    `folder` is made if need be; it must be the user's own, and closed to others. Raises
    NoNativeCode.
    """
    if os.name != "posix":
        raise NoNativeCode(f"native code is not compiled on {platform.system()}")
    try:
        _make_private(folder)
        compiler = _find_compiler()
        options = [*_FLAGS, *(f"-D{name}={value}" for name, value in sorted(constants.items()))]
        parts = (source.read_text(), *options, _version_of(compiler), processor_facts())
        name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
        path = folder / f"{source.stem}-{name}.so"
        if not _is_own(path):
            _build(compiler, options, source, path)
        return _open(path)
    except (OSError, subprocess.SubprocessError) as error:
        raise NoNativeCode(f"{source.name}: {error}") from error


def _make_private(folder: Path) -> None:
    """Make the folder, or check that nobody else can have put anything into it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise NoNativeCode(f"{folder} is not a folder")
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise NoNativeCode(
            f"{folder} must belong to the user who runs this, and be closed to others (mode 0700)"
        )


def _is_own(path: Path) -> bool:
    """Whether a library is there; NoNativeCode if it is not this user's file."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        raise NoNativeCode(f"{path} is not a file of the user who runs this")
    return True


def _find_compiler() -> str:
    for name in _COMPILERS:
        if found := shutil.which(name):
            return found
    raise NoNativeCode(f"no C compiler ({' or '.join(_COMPILERS)}) is installed")


def _version_of(compiler: str) -> str:
    return _run([compiler, "--version"])


def processor_facts() -> str:
    """What `-march=native` may depend on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    facts = {line for line in lines if line.partition(":")[0].strip().lower() in _PROCESSOR_FACTS}
    return "\n".join(sorted(facts))


def _build(compiler: str, options: Sequence[str], source: Path, path: Path) -> None:
    """Compile and link in a folder of its own, then put the library in its place at once."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        compiled, linked = f"{scratch}/code.o", f"{scratch}/code.so"
        _run([compiler, *options, "-c", str(source), "-o", compiled])
        # without -fopenmp, which would name a library of OpenMP
        _run([compiler, "-shared", compiled, "-o", linked])
        Path(linked).replace(path)
    libraries = sorted(path.parent.glob("*.so"), key=lambda file: file.lstat().st_mtime)
    for old in libraries[:-_MAX_LIBRARIES]:
        with suppress(OSError):
            old.unlink()


def _open(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        # it may be cut short: made anew at the next start
        path.unlink(missing_ok=True)
        raise


def _run(command: Sequence[str]) -> str:
    """What the command prints; NoNativeCode with its first error, or last words, if it fails."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT_S
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        told = next((line for line in said if "error:" in line), said[-1])
        raise NoNativeCode(f"{command[0]} failed with {done.returncode}: {told}")
    return done.stdout
