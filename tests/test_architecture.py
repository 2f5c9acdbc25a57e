"""The house rules that a machine can check: arrows, cycles, sizes, forbidden calls, the map.

Reads the sources as syntax trees and imports nothing of the project. Layers are the first names
below `app`; README.md, "The map", says what each is for.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_MODULE_LINES = 350
MAX_FUNCTION_LINES = 60

ARROWS = {
    "errors": set(),
    "settings": set(),
    "workers": set(),
    "prefix": {"workers"},
    "model": {"prefix"},
    "engine": {"model", "prefix"},
    "registry": {"prefix"},
    "tenancy": {"prefix", "registry"},
    "api": {"engine", "model", "prefix", "registry", "tenancy", "training", "workers"},
    "training": {"engine", "model", "prefix", "registry"},
    "bench": {"engine", "model", "prefix", "registry"},
    "demo": {"training", "model", "prefix"},
    "main": {"settings", "api", "engine", "model", "prefix", "registry", "tenancy", "workers"},
    "cli": {"main", "settings", "api", "engine", "model", "prefix", "registry", "tenancy"}
    | {"training", "bench", "demo"},
}
"""Layer → the layers that it may import, besides itself and `errors`."""

LIBRARIES = {
    "fastapi": {"api", "main"},
    "starlette": {"api", "main"},
    "uvicorn": {"cli"},
    "prometheus_client": {"api", "main"},
    "pydantic_settings": {"settings"},
    "sqlalchemy": {"registry", "tenancy"},
    "obstore": {"registry"},
    "alembic": {"registry"},
    "redis": {"tenancy"},
    "typer": {"cli", "demo"},
    "rich": {"cli", "demo", "bench"},
    "httpx": {"cli", "bench"},
    "torch": {"prefix", "model", "engine", "training", "bench", "demo"},
    "transformers": {"model", "training", "bench", "demo"},
    "tokenizers": {"model", "demo", "bench"},
    "safetensors": {"prefix", "model", "training", "demo"},
    "sacrebleu": {"training"},
    "rouge_score": {"training"},
    "greenlet": {"engine"},
    "peft": {"bench"},
    "ctranslate2": {"bench"},
}
"""Library → the only layers that may write its name."""

TORCH_FREE = {
    "app.prefix.spec",
    "app.prefix.header",
    "app.prefix.reference",
    "app.engine.request",
    "app.engine.scheduler",
    "app.engine.fairness",
    "app.engine.tenant",
    "app.engine.config",
    "app.engine.router",
}
"""Modules of torch layers that decide without tensors, so that they are tested without any."""

OPTIONAL = {"peft", "ctranslate2"}
"""Heavy extras: the only libraries that a function may import (app.cli may import all late)."""

BANNED_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
BANNED_CALLS = {
    "eval",
    "exec",
    "torch.load",
    "torch.save",
    "yaml.load",
    "np.load",
    "numpy.load",
    "os.system",
    "tempfile.mktemp",
}


@dataclass(frozen=True)
class Import:
    """One imported name, absolute and dotted; `when`: at "import", at a "call", for "typing"."""

    target: str
    line: int
    when: str

    @property
    def library(self) -> str:
        return self.target.partition(".")[0]


@dataclass(frozen=True)
class Module:
    """A source file below `app`."""

    name: str
    path: Path

    @cached_property
    def source(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source, filename=str(self.path))

    @property
    def layer(self) -> str:
        return (self.name.split(".") + ["app"])[1]

    @cached_property
    def imports(self) -> list[Import]:
        return list(_imports(self.tree, "import"))

    def at(self, line: int) -> str:
        return f"{self.path.relative_to(ROOT)}:{line}"


def _imports(node: ast.AST, when: str) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, when)
        elif isinstance(child, ast.ImportFrom):
            origin = "." * child.level + (child.module or "")
            for alias in child.names:
                yield Import(f"{origin}.{alias.name}", child.lineno, when)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _imports(child, "call")
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            yield from _imports(child, "typing")
        else:
            yield from _imports(child, when)


def _module(path: Path) -> Module:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return Module(".".join(parts[:-1] if parts[-1] == "__init__" else parts), path)


MODULES = {module.name: module for module in map(_module, sorted((ROOT / "app").rglob("*.py")))}
EACH = pytest.mark.parametrize("module", MODULES.values(), ids=MODULES.keys())


def _home(target: str) -> str | None:
    """The module of ours that an imported name lives in, if it is ours."""
    while target:
        if target in MODULES:
            return target
        target = target.rpartition(".")[0]
    return None


@EACH
def test_arrows_go_one_way(module: Module) -> None:
    allowed = ARROWS.get(module.layer, set()) | {module.layer, "errors", "app"}
    assert module.layer in ARROWS or module.name == "app", f"{module.layer}: an unknown layer"
    wrong = [
        f"{module.at(found.line)} imports {home}"
        for found in module.imports
        if (home := _home(found.target)) and MODULES[home].layer not in allowed
    ]
    assert not wrong


@EACH
def test_libraries_stay_in_their_layers(module: Module) -> None:
    wrong = [
        f"{module.at(found.line)} imports {found.target}"
        for found in module.imports
        if module.layer not in LIBRARIES.get(found.library, {module.layer})
        or (found.library == "torch" and module.name in TORCH_FREE)
        or found.library in BANNED_IMPORTS
        or found.target.startswith(".")
    ]
    assert not wrong


@EACH
def test_functions_import_only_heavy_extras(module: Module) -> None:
    wrong = [
        f"{module.at(found.line)} imports {found.target} inside a function"
        for found in module.imports
        if found.when == "call" and found.library not in OPTIONAL and module.layer != "cli"
    ]
    assert not wrong


def test_the_command_line_starts_light() -> None:
    """What `polyprefix --help` imports, directly or not, is free of heavy libraries."""
    heavy = {"torch", "transformers", "tokenizers", "numpy", "uvicorn", "pydantic_settings"}
    reached, waiting = {"app.cli"}, ["app.cli"]
    wrong = []
    while waiting:
        module = MODULES[waiting.pop()]
        for found in (found for found in module.imports if found.when == "import"):
            if found.library in heavy:
                wrong.append(f"{module.at(found.line)} imports {found.target}")
            if (home := _home(found.target)) and home not in reached:
                reached.add(home)
                waiting.append(home)
    assert not wrong


def test_no_module_is_part_of_an_import_cycle() -> None:
    graph = {
        name: {home for found in module.imports if (home := _home(found.target)) and home != name}
        for name, module in MODULES.items()
    }
    while leaves := {name for name, targets in graph.items() if not targets}:
        graph = {name: targets - leaves for name, targets in graph.items() if name not in leaves}
    assert not graph, f"these modules import each other: {graph}"


@EACH
def test_modules_and_functions_stay_small(module: Module) -> None:
    lines = len(module.source.splitlines())
    assert lines <= MAX_MODULE_LINES, f"{module.name} has {lines} lines"
    long = [
        f"{module.at(node.lineno)} {node.name}: {length} lines"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert not long


@EACH
def test_modules_and_public_names_say_what_they_are(module: Module) -> None:
    assert not module.source or ast.get_docstring(module.tree), f"{module.name}: no docstring"
    silent = [
        f"{module.at(node.lineno)} {node.name}"
        for node in module.tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not silent


@EACH
def test_nothing_dangerous_or_global_is_written(module: Module) -> None:
    wrong = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Assert):
            wrong.append(
                f"{module.at(node.lineno)} assert: raise an error that says what and where"
            )
        elif isinstance(node, ast.Global):
            wrong.append(f"{module.at(node.lineno)} global {', '.join(node.names)}")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in BANNED_CALLS:
            wrong.append(f"{module.at(node.lineno)} {ast.unparse(node.func)}(...)")
    assert not wrong


@EACH
def test_only_settings_and_the_command_line_read_the_environment(module: Module) -> None:
    reads = [
        module.at(node.lineno)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {"os.environ", "os.getenv"}
    ]
    assert not reads or module.layer in {"settings", "cli"}, reads


def test_only_main_and_the_command_line_know_the_settings() -> None:
    users = {
        module.layer
        for module in MODULES.values()
        for found in module.imports
        if _home(found.target) == "app.settings"
    }
    assert users <= {"main", "cli"}


def _map_of_the_readme() -> dict[str, str]:
    """The annotated tree of README.md as path → note; two spaces of indent are one folder."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = re.search(r"## The map\n.*?```\n(.*?)```", readme, re.DOTALL)
    assert tree, "README.md has no annotated tree under 'The map'"
    notes: dict[str, str] = {}
    folders: list[str] = []
    for line in tree[1].splitlines():
        entry = re.fullmatch(r"((?:  )*)(\S+)\s+(.+)", line)
        assert entry, f"not a line of the map: {line!r}"
        depth = len(entry[1]) // 2
        path = "".join(folders[:depth]) + entry[2]
        assert path not in notes, f"{path} stands twice in the map"
        notes[path] = entry[3]
        if path.endswith("/"):
            folders[depth:] = [entry[2]]
    return notes


def test_the_map_in_the_readme_is_the_tree() -> None:
    """A folder's line stands for its `__init__.py` too, which may also be listed by itself."""
    listed = _map_of_the_readme()
    files = {str(module.path.relative_to(ROOT)) for module in MODULES.values()}
    mains = {path for path in files if not path.endswith("__init__.py")}
    folders = {f"{Path(path).parent}/" for path in files}
    assert not (mains | folders) - listed.keys(), "these are missing in the map"
    gone = {path for path in listed if not (ROOT / path).exists()}
    assert not gone, "these are in the map alone"
