"""The id that names finished work: one however a job is written, another for each change, and none that moves."""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from written import AGREEMENT, EVOLVING, FAN, FOLDER, JOB, LAYERS, STEM, STEP, TOLERANCE, job

from pipeline.adapt_config import OWN, AdaptConfig
from pipeline.config import canonical, digest, job_id, read_job
from pipeline.model_config import EvolutionConfig
from pipeline.reading import added, read_dataclass
from pipeline.train_config import Phase

GOLDEN = Path(__file__).parents[1] / "golden" / "job_ids.json"


def identity(data: Any) -> str:
    return job_id(read_job(data, ""))


def defaults(cls: type) -> dict[str, Any]:
    """The fields that have a default, as plain data."""
    known = [f for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING]
    return {f.name: plain(f.default) for f in known}


def plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return canonical(value)
    return list(value) if isinstance(value, tuple) else value


def reversed_keys(data: Any) -> Any:
    return {k: reversed_keys(data[k]) for k in reversed(list(data))} if isinstance(data, dict) else data


def parts_of(config: Any, where: str = "") -> typing.Iterator[tuple[str, Any]]:
    """(dotted path, dataclass) of a job and each of its parts."""
    yield where, config
    for f in dataclasses.fields(config):
        if dataclasses.is_dataclass(value := getattr(config, f.name)):
            yield from parts_of(value, f"{where}{f.name}.")


GIVEN = ("model.basis", "model.basis.degree")  # JOB has other values there than the defaults
SAME: dict[str, dict[str, Any]] = {
    "as text": job(**{"train.lr": "1e-1"}),
    "order of keys": reversed_keys(JOB),
    "whole number": job(**{"train.weight_decay": 0, "model.time_scale": 1}),
    "minus zero": job(**{"train.weight_decay": -0.0}),
    "solver": job(**{"train.solver": "rk4@04"}),
    **{
        f"defaults of {where or 'the job'}": job(
            **{f"{where}{k}": v for k, v in defaults(type(part)).items() if f"{where}{k}" not in GIVEN}
        )
        for where, part in parts_of(read_job(JOB, ""))
    },
}


@pytest.mark.parametrize("how", SAME)
def test_a_job_has_one_id_however_it_is_written(how):
    assert SAME[how] is not JOB
    assert identity(SAME[how]) == identity(JOB)


@pytest.mark.parametrize(
    ("path", "texts"),
    [
        ("train.solver", ["dopri5@1e-5", "dopri5@0.00001", "dopri5@rtol=1e-5,atol=1E-05"]),
        ("model.basis.knots", [["1/2", "3/4"], [0.5, 0.75], ["0.50", ".75"], [0.5, "6/8"]]),
    ],
)
def test_solvers_and_knots_have_one_id_however_they_are_written(path, texts):
    assert len({identity(job(**{path: text})) for text in texts}) == 1


@pytest.mark.parametrize("rule", [STEP, TOLERANCE, AGREEMENT])
def test_the_own_values_of_a_rule_have_one_id_whether_they_are_written_or_not(rule):
    """And each is written in the config, so that another default could not change what a finished job was."""
    name = rule["train.adapt.rule"]
    values = {key: of[name] for key, of in OWN.items() if name in of}
    written = job(**{**rule, **{f"train.adapt.{key}": value for key, value in values.items()}})
    assert identity(written) == identity(job(**rule))
    assert values.items() <= canonical(read_job(job(**rule), ""))["train"]["adapt"].items()


def test_equal_configs_made_in_python_have_equal_ids():
    one = read_job(job(**{"train.lr": 1.0}), "")
    other = dataclasses.replace(one, train=dataclasses.replace(one.train, lr=1))
    assert one == other
    assert job_id(one) == job_id(other)


PATH = {**EVOLVING, "model.evolution": {"kind": "path", "basis": {"degree": 0, "num_coefficients": 2}}}
GROUPED = {**STEM, "model.field": "preactivation_bottleneck"}

# For each field a new value, and what the job before has besides JOB; `basis` stands for its own fields.
CHANGED: dict[str, tuple[Any, dict[str, Any]]] = {
    "data.name": ("mnist", {}),
    "data.num_validation": (100, {}),
    "data.num_train": (100, {}),
    "data.split_seed": (1, {}),
    "data.mean": ([0.5], {"data.mean": [0.25], "data.std": [1.0]}),
    "data.std": ([0.5], {"data.mean": [0.0], "data.std": [1.0]}),
    "data.crop_padding": (1, {}),
    "data.crop_mode": ("reflect", {}),
    "data.flip": (True, {}),
    "data.dimension": (3, {"data.name": "spheres", "data.dimension": 2}),
    "data.folder": ("fish", FOLDER),
    "data.image_size": (64, FOLDER),
    "data.num_classes": (6, FOLDER),
    "model.network": ("stages", STEM),
    "model.fan": ([-1.0, -1.0, 10.0, 3.0], FAN),
    "model.family": ("resnet", {"model.family": "neural_ode", "model.basis": None, "train.solver": "euler@4"}),
    "model.width": (9, {}),
    "model.field": ("concat_time", STEM),
    "model.basis.degree": (2, {}),
    "model.basis.num_coefficients": (5, {}),
    "model.basis.knots": ("unclamped", {}),
    "model.vary": ("kernels", {}),
    "model.pad_channels": (4, {}),
    "model.num_groups": (16, {}),
    "model.time_scale": (4.0, {}),
    "model.init": ("torch_default", {}),
    "model.evolution.kind": ("reaction_diffusion", EVOLVING),
    "model.evolution.rank": (5, EVOLVING),
    "model.evolution.width": (17, EVOLVING),
    "model.evolution.basis": ({"degree": 0, "num_coefficients": 3}, PATH),
    "model.evolution.sigma": ("tanh", EVOLVING),
    "model.evolution.method": ("euler", EVOLVING),
    "model.evolution.num_steps": (2, EVOLVING),
    "model.rule.k_per_channel": (True, LAYERS),
    "model.rule.k_range": ([0.0, 0.1], LAYERS),
    "model.rule.k_decay": (True, LAYERS),
    "model.rule.order": (3, LAYERS),
    "model.rule.survival": (0.5, LAYERS),
    "model.rule.noise": (1e-3, LAYERS),
    "model.rule.noise_kind": ("released", LAYERS),
    "model.norm": ("batch", STEM),
    "model.statistics": (5, STEM),
    "model.time_channel": (True, {}),
    "model.cardinality": (2, GROUPED),
    "model.inner_width": (4, GROUPED),
    "train.solver": ("rk4@5", {}),
    "train.epochs": (3, {}),
    "train.batch_size": (65, {}),
    "train.optimiser": ("adam", {}),
    "train.lr": (0.2, {}),
    "train.gradient": ("checkpoint", {}),
    "train.momentum": (0.9, {}),
    "train.weight_decay": (1e-4, {}),
    "train.schedule": ("cosine", {}),
    "train.milestones": ([2], {"train.schedule": "multistep", "train.milestones": [1]}),
    "train.decay": (0.2, {}),
    "train.warmup_epochs": (0.5, {}),
    "train.label_smoothing": (0.1, {}),
    "train.clip_norm": (1.0, {}),
    "train.drop_last": (True, {}),
    "train.autocast": ("bf16", {}),
    "train.record_every": (2, {}),
    "train.phases": ([{"until": 1, "solver": "euler@2"}], {}),
    "train.kinetic": (0.1, {}),
    "train.jacobian": (0.1, {}),
    "train.random_end": (0.5, {}),
    "train.changes": ([{"epoch": 1, "lr": 0.2, "weight_decay": 0.0}], {}),
    "train.adapt.rule": ("agreement", {**STEP, "data.num_validation": 50}),
    "train.adapt.every": (51, STEP),
    "train.adapt.threshold": (0.2, STEP),
    "train.adapt.shrink": (0.25, TOLERANCE),
    "train.adapt.grow": (1.2, TOLERANCE),
    "train.adapt.ratio": (60.0, STEP),
    "train.adapt.confidence": (0.9, AGREEMENT),
    "train.adapt.patience": (3, AGREEMENT),
    "seed": (1, {}),
}


def test_each_field_that_can_change_is_listed():
    every = {f"{where}{f.name}" for where, part in parts_of(read_job(JOB, "")) for f in dataclasses.fields(part)}
    for part, cls in {"model.evolution": EvolutionConfig, "train.adapt": AdaptConfig}.items():
        every |= {f"{part}.{f.name}" for f in dataclasses.fields(cls)}
    whole = {"data", "model", "train", "model.basis", "model.evolution", "model.rule", "train.adapt"}
    assert set(CHANGED) == every - whole - {"model.basis.kind"}


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Phase)])
def test_any_changed_field_of_a_phase_changes_the_hash(field):
    phase = {"until": 1, "solver": "dopri5@1e-3", "basis": None, "gradient": "direct"}
    other = {"until": 2, "solver": "rk4@2", "basis": {"degree": 0, "num_coefficients": 2}, "gradient": "adjoint"}
    changed = job(**{"train.phases": [phase | {field: other[field]}], "train.epochs": 5})
    assert identity(changed) != identity(job(**{"train.phases": [phase], "train.epochs": 5}))


def test_the_kind_of_a_basis_changes_the_hash():
    kinds = [{"num_coefficients": 5, "kind": kind} for kind in ("hat", "fourier", "legendre", "chebyshev")]
    assert len({identity(job(**{"model.basis": basis})) for basis in kinds}) == 4


@pytest.mark.parametrize("path", CHANGED)
def test_any_changed_field_changes_the_hash(path):
    """The hash behind the last hyphen, not only the slug."""
    value, besides = CHANGED[path]
    before, after = job(**besides), job(**{**besides, path: value})
    assert identity(before).rpartition("-")[2] != identity(after).rpartition("-")[2]


def test_a_hash_has_ten_hexadecimal_digits_and_the_slug_is_safe_in_file_names():
    for changes in ({}, {"train.solver": "dopri5@rtol=1e-5,atol=1e-7"}, {"model.basis.knots": ["1/3", "1/2"]}):
        assert re.fullmatch(r"[a-z0-9._-]+-[0-9a-f]{10}", identity(job(**changes)))


@dataclass(frozen=True)
class Grown:
    """A config to which a field was added later."""

    width: int
    depth: int = added(3)


@dataclass(frozen=True)
class Young:
    width: int


def test_a_field_added_later_leaves_the_id_alone_at_its_default_only():
    assert canonical(Grown(4)) == canonical(Young(4)) == {"width": 4}
    assert digest(canonical(Grown(4, depth=5))) != digest(canonical(Young(4)))
    assert read_dataclass(Grown, canonical(Grown(4)), "") == Grown(4)
    assert read_dataclass(Grown, canonical(Grown(4, depth=5)), "") == Grown(4, depth=5)


def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("name", golden())
def test_ids_of_finished_work_stay(name):
    """Red: finished work has lost its name. Make the new field `added`, or give up the old results knowingly."""
    config = read_job(golden()[name], name)
    assert job_id(config) == name


@pytest.mark.parametrize("name", golden())
def test_the_golden_configs_are_written_in_full(name):
    """So that a changed default cannot pass unseen; in that order too, or every config.json would be written anew."""
    assert json.dumps(canonical(read_job(golden()[name], name))) == json.dumps(golden()[name])


@pytest.mark.parametrize("name", [*golden(), None])
def test_a_config_survives_json(name):
    config = read_job(golden()[name] if name else JOB, "")
    assert read_job(json.loads(json.dumps(canonical(config), allow_nan=False)), "") == config
