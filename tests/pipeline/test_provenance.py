"""The hash that tells rows of one state of the code from those of another."""

import ast
from pathlib import Path

from pipeline import provenance

NO_NUMBERS = (  # reached from the stages that compute, and not by what they compute
    *("counting", "deadline", "describe", "experiment", "finished", "guess", "holder", "lease", "past", "paths"),
    *("provenance", "reading", "records", "search_config", "slurm", "space", "stage", "trials", "winners"),
)


def reached(starts: tuple[str, ...]) -> set[str]:
    """Modules of the pipeline that these import, or what they import."""
    found, new = set(), list(starts)
    while new:
        module = new.pop()
        if module not in found:
            found.add(module)
            new += imported(provenance.HERE / f"{module}.py")
    return found


def imported(file: Path) -> list[str]:
    named = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            _, _, module = (node.module or "").partition("pipeline.")
            named += [alias.name for alias in node.names] if node.module == "pipeline" else [module]
    return [name for name in named if name and (provenance.HERE / f"{name}.py").exists()]


def test_every_module_that_can_change_a_number_is_in_the_hash():
    """Else `collect` would put rows of different code into one table, and say nothing."""
    found = {f"{module}.py" for module in reached(("train", "evaluate"))}
    assert found - {f"{module}.py" for module in NO_NUMBERS} == set(provenance.NUMERIC)


def test_an_edit_of_a_module_in_the_hash_changes_it(tmp_path, monkeypatch):
    for name in provenance.NUMERIC:
        (tmp_path / "pipeline" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "pipeline" / name).write_text("x = 1\n")
    monkeypatch.setattr(provenance, "HERE", tmp_path / "pipeline")
    before = provenance.code_fingerprint.__wrapped__()
    (tmp_path / "pipeline" / "updates.py").write_text("x = 2\n")
    assert provenance.code_fingerprint.__wrapped__() != before
