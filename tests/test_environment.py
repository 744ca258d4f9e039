"""The lists of what must be installed say the same."""

import itertools
import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_conda_environment_has_the_projects_ranges():
    environment = yaml.safe_load((ROOT / "envs/environment.yaml").read_text())
    (pip,) = (item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    assert pip == PROJECT["dependencies"]


def test_constraints_meet_the_ranges_and_name_no_place():
    text = (ROOT / "envs/constraints.txt").read_text()
    pins = dict(re.fullmatch(r"([\w.-]+)==(\S+)", line).groups() for line in text.splitlines())
    known = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    optional = PROJECT["optional-dependencies"].values()
    for line in [*PROJECT["dependencies"], *itertools.chain.from_iterable(optional)]:
        requirement = Requirement(line)
        if requirement.name == PROJECT["name"]:  # one list of options that contains another
            continue
        assert requirement.specifier.contains(known[requirement.name.lower()]), line


def test_every_file_of_the_tree_stands_in_the_readme():
    """A line per file: what is not named there is not found by who reads it."""
    readme = (ROOT / "README.md").read_text()
    for folder in ("gode_core", "pipeline"):
        for path in (ROOT / folder).glob("*.py"):
            assert path.name == "__init__.py" or re.search(rf"(?<!\w){re.escape(path.name)}", readme), path
    for path in (ROOT / "pipeline/experiments").glob("*.yaml"):
        assert path.name in (ROOT / "pipeline/experiments/README.md").read_text(), path
