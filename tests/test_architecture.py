"""The arrows between modules, and what no module may do.

Each rule is a function from the modules of a tree to its violations, in words. It is tried on planted violations
first, and then must find nothing in the repository. Imports inside functions count like those at the top.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("gode_core", "pipeline")
Modules = dict[str, ast.Module]  # by dotted name; a package's __init__ under the package's own name

FORBIDDEN_IN_CORE = ("pipeline", "ray", "mlflow", "torchvision", "snakemake", "yaml")
DOORS = {  # each foreign library, and the modules that may know it
    "torchdiffeq": r"gode_core\.integrate",
    "torchvision": r"pipeline\.data\w*",
    "mlflow": r"pipeline\.store",
    "optuna": r"pipeline\.(importance|suggest)",
    "ray": r"pipeline\.(search|crew|private_ray|ray_environment|ray_nodes|tuning|schedulers|trainable)",
}
DRAWERS = ("utils", "helpers", "common", "misc", "base")
WITHOUT_TORCH = (
    *(f"gode_core.{name}" for name in ("solvers", "methods", "bases", "smooth_bases", "intervals", "validity")),
    *(f"pipeline.{name}" for name in ("data_config", "model_config", "train_config", "adapt_config", "stacks")),
    *(f"pipeline.{name}" for name in ("config", "reading", "experiment", "paths", "records", "stage", "plan", "run")),
    *(f"pipeline.{name}" for name in ("collect", "report", "publish", "status", "why", "progress", "failure")),
)
LEAVES = (
    "gode_core.methods",
    *(f"pipeline.{name}" for name in ("paths", "records", "reading", "stage", "streams")),
)
STAGES = (
    *(f"pipeline.{name}" for name in ("train", "evaluate", "collect", "report", "publish", "plan", "data")),
    *(f"pipeline.{name}" for name in ("status", "why")),
)
DATA_READERS = ("pipeline.train", "pipeline.evaluate")  # `data` is a stage (fetch) and the door to the images
PICKLERS = ("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")


def modules_of(root: Path) -> Modules:
    found = {}
    for path in sorted(p for package in PACKAGES for p in (root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text(), str(path))
        if parts[-1] == "__init__":
            found[".".join(parts[:-1])].is_package = True  # type: ignore[attr-defined]
    return found


def imports(name: str, tree: ast.Module) -> set[str]:
    """All dotted names that a module imports, anywhere in it. `from a import b` gives a and a.b: b may be a module."""
    package = name.split(".") if getattr(tree, "is_package", False) else name.split(".")[:-1]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            found |= {source} | {f"{source}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__") and node.args:
            found |= {arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)}
    return found


def called(node: ast.Call) -> str:
    """The last word of what is called: `load` for torch.load(...)."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def routes(modules: Modules, start: str) -> dict[str, list[str]]:
    """Each of our modules that runs when `start` is imported, and a way to it. Importing a.b runs a too."""
    found, ends = {}, [[start]] if start in modules else []
    while ends:
        route = ends.pop(0)
        if route[-1] not in found:
            found[route[-1]] = route
            ends += [[*route, step] for step in sorted(own_imports(modules, route[-1]))]
    return found


def own_imports(modules: Modules, name: str) -> set[str]:
    words = [dotted.split(".") for dotted in (name, *imports(name, modules[name]))]
    return {".".join(w[:k]) for w in words for k in range(1, len(w) + 1)} & set(modules) - {name}


def core_that_looks_up(modules: Modules) -> Iterator[str]:
    for name in modules:
        for imported in imports(name, modules[name]) if within(name, "gode_core") else ():
            if any(within(imported, wrong) for wrong in FORBIDDEN_IN_CORE):
                yield f"{name} imports {imported}"


def libraries_by_other_doors(modules: Modules) -> Iterator[str]:
    for name, tree in modules.items():
        for library, door in DOORS.items():
            if not re.fullmatch(door, name) and any(within(i, library) for i in imports(name, tree)):
                yield f"{name} imports {library}"


def drawers(modules: Modules) -> Iterator[str]:
    yield from (f"{name} is a drawer" for name in modules if name.split(".")[-1].strip("_") in DRAWERS)


def ways_to_torch(modules: Modules) -> Iterator[str]:
    """From the modules that planning and reporting need, along our own imports."""
    for start in WITHOUT_TORCH:
        for end, route in routes(modules, start).items():
            if any(within(i, "torch") for i in imports(end, modules[end])):
                yield " -> ".join([*route, "torch"])


def leaves_with_branches(modules: Modules) -> Iterator[str]:
    for leaf in set(LEAVES) & set(modules):
        yield from (f"{leaf} imports {i}" for i in own_imports(modules, leaf) - set(PACKAGES))


def stages_that_meet(modules: Modules) -> Iterator[str]:
    """Stages meet in files only; `search` and `fleet`, another way to run `train`, are none."""
    for start in STAGES:
        for end in routes(modules, start).keys() & set(STAGES) - {start}:
            if not (start in DATA_READERS and end == "pipeline.data"):
                yield f"{start} reaches {end}"


def unpickling(modules: Modules) -> Iterator[str]:
    """Files that hold code: pickle, and the readers that use it unless told otherwise."""
    for name, tree in modules.items():
        names = imports(name, tree)
        yield from (f"{name} imports {i}" for i in names if any(within(i, wrong) for wrong in PICKLERS))
        torch_names = {"torch"} | {
            a.asname or a.name
            for n in ast.walk(tree)
            if isinstance(n, ast.Import)
            for a in n.names
            if a.name == "torch"
        }
        loose = "torch.load" in names  # from torch import load: under whatever name, refused
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            given = {k.arg: k.value for k in call.keywords}
            owner = call.func.value if isinstance(call.func, ast.Attribute) else None
            if called(call) == "load" and isinstance(owner, ast.Name) and owner.id in torch_names:
                loose |= getattr(given.get("weights_only"), "value", None) is not True
            if "allow_pickle" in given and getattr(given["allow_pickle"], "value", None) is not False:
                yield f"{name}:{call.lineno}: allow_pickle"
            if called(call) in ("read_pickle", "to_pickle"):
                yield f"{name}:{call.lineno}: {called(call)}"
        if loose:
            yield f"{name}: torch.load without weights_only=True"


def without_docstring(modules: Modules) -> Iterator[str]:
    yield from (f"{name} has no docstring" for name, tree in modules.items() if not ast.get_docstring(tree))


Rule = Callable[[Modules], Iterator[str]]
RULES: list[Rule] = [
    *(core_that_looks_up, libraries_by_other_doors, drawers, ways_to_torch),
    *(leaves_with_branches, stages_that_meet, unpickling, without_docstring),
]


@pytest.mark.parametrize("rule", RULES)
def test_the_repository_keeps_the_rule(rule):
    assert list(rule(modules_of(ROOT))) == []


def test_all_modules_are_looked_at():
    modules = modules_of(ROOT)
    assert {*PACKAGES, "gode_core.solvers", "pipeline.config"} <= set(modules)
    assert len(modules) == sum(1 for package in PACKAGES for _ in (ROOT / package).rglob("*.py"))


def planted(folder: Path, files: dict[str, str]) -> Modules:
    for path, text in {"gode_core/__init__.py": "", "pipeline/__init__.py": "", **files}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(f'"""Planted."""\n{text}\n')
    return modules_of(folder)


LAZY = "def f():\n    if True:\n        "


@pytest.mark.parametrize(
    ("rule", "files", "found"),
    [
        *[
            (core_that_looks_up, {"gode_core/layers.py": text}, f"gode_core.layers imports {what}")
            for text, what in [
                ("import pipeline.config", "pipeline.config"),
                ("from pipeline import config", "pipeline"),
                (f"{LAZY}import yaml as y", "yaml"),
                ("import importlib\nimportlib.import_module('ray.tune')", "ray.tune"),
                ("from ..pipeline import config", "pipeline"),
                ("import snakemake", "snakemake"),
            ]
        ],
        (core_that_looks_up, {"gode_core/blocks/deep.py": "import mlflow"}, "gode_core.blocks.deep imports mlflow"),
        (
            libraries_by_other_doors,
            {"gode_core/fields.py": "import torchdiffeq"},
            "gode_core.fields imports torchdiffeq",
        ),
        (libraries_by_other_doors, {"pipeline/train.py": f"{LAZY}import torchvision.io"}, "train imports torchvision"),
        (
            libraries_by_other_doors,
            {"pipeline/collect.py": "from mlflow import log"},
            "pipeline.collect imports mlflow",
        ),
        (libraries_by_other_doors, {"pipeline/train.py": "__import__('ray')"}, "pipeline.train imports ray"),
        (libraries_by_other_doors, {"pipeline/report.py": f"{LAZY}import optuna"}, "pipeline.report imports optuna"),
        *[
            (drawers, {f"pipeline/{n}.py": ""}, f"pipeline.{n} is a drawer")
            for n in ("utils", "_common", "base", "misc")
        ],
        (drawers, {"gode_core/helpers/__init__.py": ""}, "gode_core.helpers is a drawer"),
        (ways_to_torch, {"pipeline/config.py": f"{LAZY}from torch import nn"}, "pipeline.config -> torch"),
        (
            ways_to_torch,
            {
                "pipeline/plan.py": "from pipeline import a",
                "pipeline/a.py": "from .b import x",
                "pipeline/b.py": "import torch",
            },
            "pipeline.plan -> pipeline.a -> pipeline.b -> torch",
        ),
        (ways_to_torch, {"gode_core/__init__.py": "import torch"}, "gode_core.solvers -> gode_core -> torch"),
        (
            leaves_with_branches,
            {"pipeline/paths.py": "from pipeline.config import x"},
            "pipeline.paths imports pipeline.config",
        ),
        (
            leaves_with_branches,
            {"gode_core/methods.py": "from . import bases"},
            "gode_core.methods imports gode_core.bases",
        ),
        *[
            (stages_that_meet, {"pipeline/report.py": text}, "pipeline.report reaches pipeline.collect")
            for text in (
                "from pipeline.collect import x",
                "from pipeline import collect",
                f"{LAZY}from . import collect",
            )
        ],
        (
            stages_that_meet,
            {"pipeline/report.py": "from pipeline import a", "pipeline/a.py": "import pipeline.collect"},
            "pipeline.report reaches pipeline.collect",
        ),
        (stages_that_meet, {"pipeline/plan.py": "from pipeline.data import x"}, "pipeline.plan reaches pipeline.data"),
        (stages_that_meet, {"pipeline/data.py": "import pipeline.train"}, "pipeline.data reaches pipeline.train"),
        *[
            (unpickling, {"pipeline/checkpoint.py": text}, f"pipeline.checkpoint{what}")
            for text, what in [
                (f"{LAZY}import pickle", " imports pickle"),
                ("from joblib import load", " imports joblib"),
                ("import torch\ntorch.load('x')", ": torch.load without weights_only=True"),
                ("import torch as t\nt.load('x', weights_only=False)", ": torch.load without weights_only=True"),
                ("import torch\ntorch.load('x', weights_only=y)", ": torch.load without weights_only=True"),
                ("from torch import load as restore\nrestore('x')", ": torch.load without weights_only=True"),
                ("import numpy as np\nnp.load('x', allow_pickle=True)", ":3: allow_pickle"),
                ("import pandas as pd\npd.read_pickle('x')", ":3: read_pickle"),
            ]
        ],
    ],
)
def test_a_planted_violation_is_found(rule, files, found, tmp_path):
    needed = [f"pipeline/{name}.py" for name in ("config", "collect", "data", "train")]
    needed += ["gode_core/solvers.py", "gode_core/bases.py"]
    violations = list(rule(planted(tmp_path, dict.fromkeys(needed, "") | files)))
    assert any(found in violation for violation in violations), violations


def test_a_module_without_a_docstring_is_found(tmp_path):
    planted(tmp_path, {})
    (tmp_path / "pipeline" / "bare.py").write_text("# no docstring\nx = 1\n")
    assert list(without_docstring(modules_of(tmp_path))) == ["pipeline.bare has no docstring"]


ALLOWED = {
    "gode_core/methods.py": "import re",
    "gode_core/bases.py": "from gode_core.methods import x",
    "gode_core/integrate.py": "import torch\nimport torchdiffeq",
    "pipeline/config.py": "from gode_core.bases import x",
    "pipeline/data.py": f"{LAZY}import torchvision",
    "pipeline/data_folder.py": "import torchvision",
    "pipeline/store.py": f"import rayon\n{LAZY}import mlflow",
    "pipeline/search.py": "import ray\nfrom pipeline.train import x",
    "pipeline/importance.py": f"{LAZY}import optuna",
    "pipeline/crew.py": "import ray\nfrom pipeline import train",
    "pipeline/train.py": "from pipeline.data import x\nimport torch\ntorch.load('x', weights_only=True)",
    "pipeline/evaluate.py": "import json\nfrom pipeline import data\njson.load(x)",
    "pipeline/plan.py": "from pipeline import stage, config\nimport torchlike",
    "pipeline/stage.py": "import numpy as np\nnp.load('x', allow_pickle=False)",
}


@pytest.mark.parametrize("rule", RULES)
def test_what_the_design_allows_is_left_in_peace(rule, tmp_path):
    assert list(rule(planted(tmp_path, ALLOWED))) == []
