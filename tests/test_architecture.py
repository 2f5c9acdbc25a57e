"""The house rules that a machine can check: arrows, cycles, sizes, names, forbidden calls, the map.

Reads the sources as syntax trees and imports nothing of the project. Layers are the first names
below `app`; app/README.md says what each is for. One test per rule, over all modules.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAX_MODULE_LINES = 350
MAX_FUNCTION_LINES = 60
MAX_FOLDER_MODULES = 16
MAX_README_LINES = 200
MAX_KNOWS_NOTHING = 15

ARROWS = {
    layer: set(allowed.split())
    for layer, allowed in {
        "errors": "",
        "addresses": "",
        "settings": "",
        "prefix": "",
        "model": "prefix",
        "engine": "model prefix",
        "db": "",
        "registry": "db prefix",
        "tenancy": "addresses db prefix",
        "jobs": "datasets db prefix registry tenancy",
        "runtime": "addresses model prefix registry",
        "datasets": "prefix",
        "evaluation": "datasets engine model prefix",
        "training": "datasets engine evaluation model prefix registry",
        "worker": "datasets db engine evaluation jobs model prefix registry tenancy training",
        "api": "db engine evaluation jobs model prefix registry runtime tenancy training",
        "main": "settings api db engine jobs model prefix registry runtime tenancy worker",
        "bench": "db engine evaluation model prefix registry runtime training",
        "demo": "evaluation model prefix training",
        "experiments": "datasets engine evaluation model prefix training",
        "cli": "main settings api bench datasets db demo engine evaluation experiments model "
        "prefix registry runtime tenancy training worker",
    }.items()
}
"""Layer → the layers that it may import, besides itself and `errors`."""

LIBRARIES = {
    "fastapi": {"api", "main"},
    "starlette": {"api", "main"},
    "uvicorn": {"runtime"},
    "prometheus_client": {"api", "main"},
    "pydantic_settings": {"settings"},
    "sqlalchemy": {"db", "jobs", "registry", "tenancy"},
    "obstore": {"registry"},
    "alembic": {"db"},
    "redis": {"tenancy"},
    "typer": {"cli", "demo"},
    "rich": {"cli", "demo", "bench"},
    "httpx": {"cli", "bench"},
    "torch": {
        "prefix",
        "runtime",
        "model",
        "engine",
        "evaluation",
        "training",
        "worker",
        "bench",
        "demo",
        "cli",
    },
    "transformers": {"model", "training", "bench", "demo"},
    "tokenizers": {"model", "demo", "bench"},
    "safetensors": {"prefix", "model", "training", "demo"},
    "sacrebleu": {"evaluation"},
    "rouge_score": {"evaluation"},
    "greenlet": {"engine"},
    "datasets": {"datasets"},
    "pycocoevalcap": {"evaluation"},
    "bert_score": {"evaluation"},
    "matplotlib": {"experiments"},
    "peft": {"bench", "training"},
    "ctranslate2": {"bench"},
}
"""Library → the only layers that may write its name."""

TORCH_FREE = {
    "app.prefix.spec",
    "app.prefix.header",
    "app.prefix.reference",
    "app.engine.request",
    "app.engine.scheduler",
    "app.engine.fairness.queue",
    "app.engine.fairness.tenant_share",
    "app.engine.config",
    "app.engine.router",
}
"""Modules of torch layers that decide without tensors, so that they are tested without any."""

OPTIONAL = {"peft", "ctranslate2", "datasets", "pycocoevalcap", "bert_score", "matplotlib"}
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


NAMED_TUPLES = {"_replace", "_asdict", "_fields", "_mapping"}
"""Public methods of named tuples, and of SQLAlchemy's rows, in spite of their names."""

FOREIGN_PRIVATE = {
    "os._exit",
    "GenerationMixin._beam_search",
    "torch.ops.mkldnn._reorder_linear_weight",
    "torch.ops.mkldnn._is_mkldnn_bf16_supported",
}
"""Libraries' private names that tests call or replace."""


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


def _all_imports() -> Iterator[tuple[Module, Import]]:
    return ((module, found) for module in MODULES.values() for found in module.imports)


def _all_nodes() -> Iterator[tuple[Module, ast.AST]]:
    return ((module, node) for module in MODULES.values() for node in ast.walk(module.tree))


def _home(target: str) -> str | None:
    """The module of ours that an imported name lives in, if it is ours."""
    while target:
        if target in MODULES:
            return target
        target = target.rpartition(".")[0]
    return None


def test_every_layer_is_known() -> None:
    assert {module.layer for module in MODULES.values()} - {"app"} == ARROWS.keys()


def test_arrows_go_one_way() -> None:
    wrong = [
        f"{module.at(found.line)} imports {home}"
        for module, found in _all_imports()
        if (home := _home(found.target))
        and MODULES[home].layer not in ARROWS.get(module.layer, set()) | {module.layer, "errors"}
        and home != "app"
    ]
    assert not wrong


def test_libraries_stay_in_their_layers() -> None:
    wrong = [
        f"{module.at(found.line)} imports {found.target}"
        for module, found in _all_imports()
        if module.layer not in LIBRARIES.get(found.library, {module.layer})
        or (found.library == "torch" and module.name in TORCH_FREE)
        or found.library in BANNED_IMPORTS
        or found.target.startswith(".")
    ]
    assert not wrong


def test_functions_import_only_heavy_extras() -> None:
    wrong = [
        f"{module.at(found.line)} imports {found.target} inside a function"
        for module, found in _all_imports()
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


def test_modules_and_functions_stay_small() -> None:
    long = [
        f"{module.name} has {lines} lines"
        for module in MODULES.values()
        if (lines := len(module.source.splitlines())) > MAX_MODULE_LINES
    ]
    long += [
        f"{module.at(node.lineno)} {node.name}: {length} lines"
        for module, node in _all_nodes()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert not long


def test_folders_and_the_readme_stay_small() -> None:
    large = {name: count for name, count in _packages().items() if count > MAX_FOLDER_MODULES}
    assert not large
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MAX_README_LINES


def test_no_two_classes_have_one_name() -> None:
    homes: dict[str, list[str]] = {}
    for module in MODULES.values():
        for node in module.tree.body:
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(module.at(node.lineno))
    twice = {name: places for name, places in homes.items() if len(places) > 1}
    assert not twice


def test_modules_and_public_names_say_what_they_are() -> None:
    silent = [
        module.name
        for module in MODULES.values()
        if module.source and not ast.get_docstring(module.tree)
    ]
    silent += [
        f"{module.at(node.lineno)} {node.name}"
        for module in MODULES.values()
        for node in module.tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not silent


def test_modules_rarely_say_what_they_do_not_know() -> None:
    """The arrows prove it; it is worth a sentence only where it surprises."""
    found = [m.name for m in MODULES.values() if re.search(r"[Kk]nows\s+nothing", m.source)]
    assert len(found) <= MAX_KNOWS_NOTHING, found


def test_nothing_dangerous_or_global_is_written() -> None:
    wrong = []
    for module, node in _all_nodes():
        if isinstance(node, ast.Assert):
            wrong.append(
                f"{module.at(node.lineno)} assert: raise an error that says what and where"
            )
        elif isinstance(node, ast.Global):
            wrong.append(f"{module.at(node.lineno)} global {', '.join(node.names)}")
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in BANNED_CALLS
            and not _loads_weights_for_its_own_user(module, node)
        ):
            wrong.append(f"{module.at(node.lineno)} {ast.unparse(node.func)}(...)")
    assert not wrong


def _loads_weights_for_its_own_user(module: Module, call: ast.Call) -> bool:
    """Whether the command line, and no server, reads a checkpoint of tensors only."""
    options = {option.arg: ast.unparse(option.value) for option in call.keywords}
    return (
        module.layer == "cli"
        and ast.unparse(call.func) == "torch.load"
        and options.get("weights_only") == "True"
    )


def test_only_settings_and_the_command_line_read_the_environment() -> None:
    reads = [
        module.at(node.lineno)
        for module, node in _all_nodes()
        if isinstance(node, ast.Attribute)
        and ast.unparse(node) in {"os.environ", "os.getenv"}
        and module.layer not in {"settings", "cli"}
    ]
    assert not reads


def test_only_main_and_the_command_line_know_the_settings() -> None:
    users = {
        module.layer
        for module in MODULES.values()
        for found in module.imports
        if _home(found.target) == "app.settings"
    }
    assert users <= {"main", "cli"}


def test_tests_use_no_private_attributes_of_ours() -> None:
    """Of others' they may: named tuples' methods, and what a test replaces in a library."""
    used = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Attribute)
                and re.match("_[^_]", node.attr)
                and ast.unparse(node.value) not in {"self", "cls"}
                and ast.unparse(node) not in FOREIGN_PRIVATE
                and node.attr not in NAMED_TUPLES
            ):
                used.append(f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}")
    assert not used


def _packages() -> dict[str, int]:
    """Each package below `app` by its path, and how many modules its folder shows."""
    folders = [module.path.parent for module in MODULES.values()]
    mains = [m.path.parent for m in MODULES.values() if m.path.name != "__init__.py"]
    return {str(folder.relative_to(ROOT)): mains.count(folder) for folder in set(folders)}


def test_the_readme_of_app_has_a_line_for_each_package() -> None:
    """A line starts with the package's path in backquotes, below `app/README.md`, "Packages"."""
    readme = (ROOT / "app" / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## Packages")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `(app[\w/]*)/` \|", section, re.MULTILINE)
    assert len(listed) == len(set(listed)), "a package has two lines"
    assert set(listed) == _packages().keys() - {"app"}
