"""What a job may be, and how mistakes in one are answered."""

from __future__ import annotations

import ast
import json
import re
import string
import typing
from pathlib import Path
from typing import Any

import pytest
from written import AGREEMENT, EVOLVING, FAN, FOLDER, JOB, LAYERS, STEM, STEP, TOLERANCE, job

from gode_core.bases import BASES, KNOTS, clamped
from gode_core.evolution import EVOLUTIONS
from gode_core.solvers import TABLEAUS
from pipeline.config import JobConfig, canonical, job_id, load_job, read_job
from pipeline.model_config import BasisConfig, EvolutionConfig

SPHERES = {"data": {"name": "spheres", "dimension": 2}}


def refusal(data: Any) -> str:
    with pytest.raises(ValueError) as error:
        read_job(data, "x.yaml: job")
    return str(error.value)


@pytest.mark.parametrize(
    ("path", "place", "meant"),
    [
        ("trian", "x.yaml: job", "train"),
        ("data.num_validaton", "x.yaml: job: data", "num_validation"),
        ("model.num_group", "x.yaml: job: model", "num_groups"),
        ("model.basis.num_coefs", "x.yaml: job: model: basis", "num_coefficients"),
        ("train.optimizer", "x.yaml: job: train", "optimiser"),
    ],
)
def test_a_misspelt_key_is_answered_with_its_place_the_key_meant_and_the_known_keys(path, place, meant):
    text = refusal(job(**{path: 1}))
    assert text.startswith(f"{place}: unknown key `{path.split('.')[-1]}`. Did you mean `{meant}`? Known keys: ")
    assert f" {meant}" in text.partition("Known keys:")[2]


def test_a_key_like_no_other_is_answered_without_a_guess():
    assert refusal(job(qqq=1)) == "x.yaml: job: unknown key `qqq`. Known keys: data, model, seed, train."


@pytest.mark.parametrize("path", ["data", "data.name", "model.basis.num_coefficients", "train.lr"])
def test_a_missing_key_is_named(path):
    place = ": ".join(["x.yaml: job", *path.split(".")[:-1]])
    assert refusal(job(**{path: ...})) == f"{place}: `{path.split('.')[-1]}` is missing"


@pytest.mark.parametrize(
    ("path", "value", "allowed"),
    [
        *[("model.width", value, "a whole number") for value in (1.5, 16.0, "16", True, None, [16], {})],
        *[("train.lr", value, "a number") for value in ("fast", True, None, [0.1], {}, "", "nan", "inf", 10**400)],
        *[("train.lr", value, "a number") for value in (float("nan"), float("inf"), float("-inf"))],
        *[("data.flip", value, "true or false") for value in (0, 1, "true", None)],
        *[("train.solver", value, "text") for value in (True, None, ["rk4@4"], {})],
        *[("train.milestones", value, "a list") for value in (3, "3", None, {})],
        *[("train.milestones", [2, value], "a whole number") for value in (2.5, True, "3")],
        ("data.mean", ["grey"], "a number"),
        *[(path, value, "a mapping") for path in ("data", "model.basis") for value in ("digits", 1, [1])],
        *[("data.num_train", value, "a whole number") for value in (1.5, "all", False)],
        ("train.clip_norm", True, "a number"),
    ],
)
def test_a_value_of_the_wrong_type_is_answered_with_its_place_and_what_it_must_be(path, value, allowed):
    text = refusal(job(**{path: value}))
    assert text.startswith(f"x.yaml: job: {path.replace('.', ': ')}")
    assert f"must be {allowed}, got " in text


@pytest.mark.parametrize("data", [None, [], "job", 3])
def test_a_job_that_is_no_mapping_is_refused(data):
    assert refusal(data) == f"x.yaml: job: must be a mapping, got {data!r}"


@pytest.mark.parametrize(
    ("path", "value", "meant"),
    [
        ("data.name", "mnits", "mnist"),
        ("model.family", "neural-ode", "neural_ode"),
        ("model.basis.knots", "clampd", "clamped"),
        ("train.optimiser", "adamW", "adamw"),
        ("train.gradient", "adjiont", "adjoint"),
        ("train.schedule", "multi-step", "multistep"),
        ("train.adapt.rule", "steps", "step"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_name_meant_and_the_allowed_ones(path, value, meant):
    text = refusal(job(**{path: value}))
    place = path.replace(".", ": ")
    assert text.startswith(f"x.yaml: job: {place}: `{value}` is not known. Did you mean `{meant}`? Allowed: ")
    assert meant in text.partition("Allowed:")[2]


@pytest.mark.parametrize("value", [1e-3, "1e-3", "0.001"])
def test_a_number_may_be_written_as_yaml_reads_it(value):
    """YAML 1.1 reads 1e-3, without a point, as text."""
    assert read_job(job(**{"train.lr": value}), "").train.lr == 0.001


@pytest.mark.parametrize(("value", "kind"), [(1, float), ("5", float), (0, float)])
def test_whole_numbers_are_read_as_numbers(value, kind):
    assert type(read_job(job(**{"train.weight_decay": value}), "").train.weight_decay) is kind


LINE, POINT = {"degree": 1, "num_coefficients": 3}, {"degree": 0, "num_coefficients": 3}
HAT, FOURIER = {"kind": "hat", "num_coefficients": 3}, {"kind": "fourier", "num_coefficients": 3}
GROUPED = {**STEM, "model.field": "preactivation_bottleneck"}
RESNET = {"model.family": "resnet", "model.basis": ..., "train.solver": "euler@4"}
PHASES = [{"until": 1, "solver": "euler@2", "basis": LINE}]

# Each `need` of pipeline.config and its sections, once: the change, and what the answer says.
CHANGE = {"epoch": 1, "lr": 0.1, "weight_decay": 0.0}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"data.num_validation": -1}, "data: num_validation must be at least 0, got -1"),
    ({"data.num_train": 0}, "data: num_train must be at least 1, got 0"),
    ({"data.split_seed": -1}, "data: split_seed must be at least 0, got -1"),
    ({"data.mean": [0.5]}, "data: mean and std must be equally long"),
    ({"data.mean": [0.5], "data.std": [0.0]}, "data: std must be positive"),
    ({"data.mean": [0.5] * 3, "data.std": [0.2] * 3}, "data: mean needs one number per channel"),
    ({"data.crop_padding": -1}, "data: crop_padding must be at least 0, got -1"),
    ({"data.crop_padding": 8, "data.crop_mode": "reflect"}, "data: reflect needs crop_padding below 8, got 8"),
    ({"data.name": "spheres"}, "data: spheres need `dimension: 2`, 3, 10 or 900, got None"),
    ({"data.name": "spheres", "data.dimension": 4}, "data: spheres need `dimension: 2`, 3, 10 or 900, got 4"),
    ({**{f"data.{k}": v for k, v in SPHERES["data"].items()}, "data.flip": True}, "data: spheres are points"),
    ({"data.dimension": 2}, "data: dimension belongs to spheres, not to digits"),
    ({**FAN, "data.dimension": 2}, "data: dimension belongs to spheres, not to xor"),
    ({**FAN, "data.crop_padding": 1}, "data: xor are points: no crop, flip or mean"),
    *[({**FOLDER, f"data.{name}": ...}, "data: imagefolder needs") for name in ("folder", "image_size", "num_classes")],
    ({**FOLDER, "data.image_size": 0}, "data: image_size must be at least 1, got 0"),
    ({**FOLDER, "data.num_classes": 1}, "data: num_classes must be at least 2, got 1"),
    *[
        ({f"data.{name}": value}, "belong to imagefolder, not to digits")
        for name, value in (("folder", ""), ("image_size", 0), ("num_classes", 10))
    ],
    ({"data.num_validation": 1437}, "data: num_validation and num_train take at least 1438 of digits's 1437 images"),
    ({"data.num_validation": 437, "data.num_train": 1001}, "take at least 1438 of digits's 1437 images"),
    ({"model.width": 0}, "model: width must be at least 1, got 0"),
    ({"model.num_groups": 0}, "model: num_groups must be at least 1, got 0"),
    ({"model.time_scale": 0}, "model: time_scale must be positive, got 0"),
    ({"model.basis": ...}, "model: family gode needs a basis: {degree: 1, num_coefficients: 4}, say"),
    ({"model.family": "neural_ode"}, "model: family neural_ode has no basis of its own"),
    ({"model.family": "resnet"}, "model: family resnet has no basis of its own"),
    ({"model.family": "resnet", "model.basis": ..., "model.vary": "kernels"}, "model: in a resnet all weights differ"),
    (
        {"model.family": "evolving", "model.basis": ...},
        "model: family evolving needs an evolution: {kind: linear}, say",
    ),
    ({"model.evolution": {"kind": "linear"}}, "model: an evolution belongs to the family evolving, not to gode"),
    *[
        ({**EVOLVING, f"model.evolution.{n}": 0}, f"evolution: {n} must be at least 1")
        for n in ("rank", "width", "num_steps")
    ],
    ({**EVOLVING, "model.evolution": {"kind": "path"}}, "evolution: kind path needs a basis: {degree: 1,"),
    ({**EVOLVING, "model.evolution.basis": LINE}, "evolution: a basis belongs to the kind path, not to linear"),
    (
        {**EVOLVING, "model.evolution": {"kind": "path", "basis": LINE | {"knots": "free"}}},
        "evolution: the basis of an evolution has fixed knots",
    ),
    ({"model.rule": {"order": 3}}, "model: a rule belongs to the discrete families, not to gode"),
    ({**LAYERS, "model.rule": {"k_range": [0.1]}}, "model: rule: k_range has two ends, got (0.1,)"),
    ({**LAYERS, "model.rule": {"k_range": [-1, 0]}}, "model: rule: k_range must lie in (-1, 1], where"),
    ({**LAYERS, "model.rule": {"order": 0}}, "model: rule: order must be at least 1, got 0"),
    *[({**LAYERS, "model.rule": {"survival": v}}, "rule: survival must lie in (0, 1], got") for v in (0, 1.5)],
    ({**LAYERS, "model.rule": {"noise": -1}}, "model: rule: noise must be at least 0, got -1"),
    (
        {"model.field": "preactivation"},
        "model: network raw has the field `bottleneck`, `perceptron` or `oscillator`, got",
    ),
    ({"model.norm": "batch"}, "model: network raw has no norm: `norm` belongs to the others, got batch"),
    ({"model.network": "stem"}, "model: network stem has the field `preactivation`, `preactivation_bottleneck` or"),
    ({**STEM, "model.network": "stages", "model.pad_channels": 9}, "pad_channels belongs to the networks raw and stem"),
    ({**STEM, "model.network": "imagenet"}, "model: network imagenet has the field `preactivation_bottleneck`"),
    ({**STEM, "model.statistics": 1}, "model: statistics must be at least 2, got 1"),
    ({**STEM, "model.cardinality": 0}, "model: cardinality must be at least 1, got 0"),
    (
        {**STEM, "model.cardinality": 2},
        "model: cardinality and inner_width belong to the field preactivation_bottleneck",
    ),
    ({**GROUPED, "model.cardinality": 3}, "model: cardinality 3 must divide the inner width"),
    ({**FAN, "model.fan": [1.0]}, "model: the field oscillator, and no other, has four numbers as its `fan`"),
    ({"model.fan": [1.0] * 4}, "model: the field oscillator, and no other, has four numbers as its `fan`"),
    *[
        ({**FAN, **changes}, "model: the field oscillator is not trained: it goes with the family neural_ode alone")
        for changes in ({"model.family": "resnet"}, {"model.pad_channels": 3}, {"model.time_channel": True})
    ],
    ({"model.basis.num_coefficients": 0}, "model: basis: num_coefficients must be at least 1, got 0"),
    ({"model.basis.degree": ...}, "model: basis: a bspline needs a `degree`: {degree: 1, num_coefficients: 4}, say"),
    ({"model.basis": POINT | {"knots": "free"}}, "basis: free knots need a degree of at least 1"),
    ({"model.basis.kind": "hat"}, "model: basis: degree belongs to the basis bspline, not to hat"),
    ({"model.basis": HAT | {"knots": "free"}}, "model: basis: knots free belong to the basis bspline, not to hat"),
    ({"model.basis": HAT | {"num_coefficients": 1}}, "model: basis: hat functions need at least 2 nodes, got 1"),
    ({"model.basis": FOURIER | {"knots": ["1/2"]}}, "model: basis: the basis fourier has no knots"),
    ({"model.basis.degree": 4}, "model: basis: degree < number of coefficients is needed, got degree 4 and 4"),
    ({"model.basis.degree": -1}, "model: basis: degree must be at least 0, got -1"),
    ({"model.basis": {"degree": 2, "num_coefficients": 2, "knots": "unclamped"}}, "model: basis: 0 <= degree <"),
    ({"model.basis.knots": ["1/2"]}, "model: basis: 4 coefficients of degree 1 have 2 interior knots, got 1"),
    ({"model.basis.knots": [0.7, 0.2]}, "model: basis: interior knots must increase within (0, 1)"),
    ({"model.basis.knots": ["1/2", "1/0"]}, "model: basis: cannot read the number `1/0`"),
    ({"model.basis.knots": ["half", 0.7]}, "model: basis: cannot read the number `half`"),
    ({"train.solver": "rk5@4"}, "train: solver `rk5@4`: unknown method `rk5`. Did you mean `rk4`?"),
    ({"train.gradient": "adjoint"}, "train: gradient `adjoint` needs an adaptive solver, got rk4@4"),
    (
        {"train.gradient": "checkpoint", "train.solver": "dopri5@1e-3"},
        "train: gradient `checkpoint` needs fixed steps, got dopri5@1e-3",
    ),
    *[({f"train.{n}": 0}, f"train: {n} must be at least 1, got 0") for n in ("epochs", "batch_size", "record_every")],
    (
        {"train.gradient": "adjoint", "train.solver": "dopri5@1e-3", "train.autocast": "bf16"},
        "train: gradient `adjoint` goes without autocast",
    ),
    ({"train.lr": 0}, "train: lr must be positive, got 0"),
    *[({"train.momentum": value}, "train: momentum must lie in [0, 1), got") for value in (-0.1, 1)],
    ({"train.optimiser": "adam", "train.momentum": 0.9}, "train: momentum belongs to sgd, not to adam"),
    ({"train.weight_decay": -1e-4}, "train: weight_decay must be at least 0, got -0.0001"),
    ({"train.milestones": [1]}, "train: milestones belong to the schedule multistep"),
    ({"train.schedule": "multistep"}, "train: the schedule multistep needs milestones"),
    *[
        ({"train.schedule": "multistep", "train.milestones": value}, "train: milestones must increase from 1 on, got")
        for value in ([0], [2, 1], [1, 1], [-1])
    ],
    *[({"train.decay": value}, "train: decay must lie in (0, 1], got") for value in (0, 1.5)],
    *[({"train.warmup_epochs": v}, "train: warmup_epochs must lie in [0, epochs], got") for v in (-1, 2.5)],
    *[({"train.label_smoothing": v}, "train: label_smoothing must lie in [0, 1), got") for v in (-0.1, 1)],
    ({"train.clip_norm": 0}, "train: clip_norm must be positive, got 0"),
    ({"train.phases": [{"until": 0, "solver": "euler@2"}]}, "train: phases[0]: until must be at least 1, got 0"),
    (
        {"train.phases": [{"until": 1, "solver": "euler@2", "basis": LINE | {"knots": "free"}}]},
        "train: phases: free knots cannot be carried to another basis",
    ),
    (
        {"train.phases": [{"until": 2, "solver": "euler@2"}]},
        "train: phases must end one after the other and before the",
    ),
    *[({f"train.{n}": -1}, f"train: {n} must be at least 0, got -1") for n in ("kinetic", "jacobian")],
    *[({"train.random_end": v}, "train: random_end must lie in [0, 1), got") for v in (-0.5, 1)],
    *[
        ({**rule, f"train.adapt.{name}": value}, f"train: adapt: {name} must lie in (0, 1), got {value}")
        for name in ("threshold", "shrink")
        for rule in (STEP, TOLERANCE, AGREEMENT)
        for value in (0.0, 1.0)
    ],
    ({**STEP, "train.adapt.every": 0}, "train: adapt: every must be at least 1, got 0"),
    ({**STEP, "train.adapt.grow": 1.0}, "train: adapt: grow must be above 1, got 1.0"),
    ({**STEP, "train.adapt.ratio": 0.5}, "train: adapt: ratio must be at least 1, got 0.5"),
    *[
        ({**AGREEMENT, "train.adapt.confidence": v}, "train: adapt: confidence must lie in (0.5, 1), got")
        for v in (0.5, 1)
    ],
    ({**AGREEMENT, "train.adapt.patience": 0}, "train: adapt: patience must be at least 1, got 0"),
    *[
        ({**rule, f"train.adapt.{name}": value}, f"train: adapt: {name} does not belong to the rule {rule_name}")
        for rule, rule_name, name, value in (
            (TOLERANCE, "tolerance", "ratio", 50.0),
            (AGREEMENT, "agreement", "ratio", 50.0),
            (STEP, "step", "confidence", 0.9),
            (TOLERANCE, "tolerance", "confidence", 0.9),
            (STEP, "step", "patience", 3),
            (TOLERANCE, "tolerance", "patience", 3),
        )
    ],
    *[
        ({**STEP, "train.solver": s}, f"train: the rule step knows the solvers euler and midpoint, got {s}")
        for s in ("rk4@4", "ab2@4", "trapezoid@4", "dopri5@1e-3")
    ],
    *[
        ({**TOLERANCE, "train.solver": s}, f"the rule tolerance knows the solvers fehlberg2 and dopri5, got {s}")
        for s in ("euler@4", "bosh3@1e-3")
    ],
    (
        {**TOLERANCE, "train.solver": "dopri5@rtol=1e-3,atol=1e-4"},
        "train: the rule tolerance has one tolerance, got dopri5@rtol=1e-3,atol=1e-4",
    ),
    *[
        (
            {**AGREEMENT, "train.solver": s},
            f"train: the rule agreement changes the number of steps: {s} has none",
        )
        for s in ("dopri5@1e-3", "layers@4")
    ],
    ({"train.changes": [CHANGE | {"epoch": 0}]}, "train: changes[0]: epoch must be at least 1, got 0"),
    ({"train.changes": [CHANGE | {"lr": 0}]}, "train: changes[0]: lr must be positive, got 0.0"),
    ({"train.changes": [CHANGE | {"weight_decay": -1}]}, "weight_decay must be at least 0, got -1.0"),
    (
        {"train.changes": [CHANGE, CHANGE]},
        "changes must come one after the other and before the last epoch, got [1, 1]",
    ),
    ({"train.changes": [CHANGE | {"epoch": 2}]}, "changes must come one after the other and before the last epoch"),
    ({**STEP, "train.phases": [{"until": 1, "solver": "euler@2"}]}, "train: adapt goes without phases: both change"),
    *[
        (
            {**rule, path: value},
            f"train: adapt: the rule {rule['train.adapt.rule']} goes without batch norm, random_end and autocast",
        )
        for rule in (STEP, TOLERANCE)
        for path, value in (("train.random_end", 0.1), ("train.autocast", "bf16"))
    ],
    ({**RESNET, **STEP, "train.solver": "euler@4"}, "train: adapt goes without a resnet, whose layers are its steps"),
    ({**AGREEMENT, "data.num_validation": 0}, "the rule agreement is judged on validation images: set data: num_val"),
    ({"model.basis.knots": "free", "train.phases": PHASES}, "phases: free knots cannot be carried from another basis"),
    ({"train.phases": [{"until": 1, "solver": "layers@2"}]}, "train: phases: layers@2 is no solver"),
    ({**EVOLVING, "train.phases": PHASES}, "train: phases: a basis belongs to the family gode, not to evolving"),
    ({**RESNET, "train.phases": PHASES}, "train: in a resnet layers are steps; write phases as a gode of degree 0"),
    ({**RESNET, "model.rule": {"survival": 0.5}}, "model: a rule needs `layers@N`, got euler@4"),
    (
        {**EVOLVING, "train.kinetic": 0.1, "train.solver": "dopri5@1e-3"},
        "train: kinetic and jacobian of evolving weights need a solver with fixed steps",
    ),
    ({"train.solver": "trapezoid@4", "train.autocast": "bf16"}, "train: an implicit solver goes without autocast"),
    (
        {**STEM, "model.norm": "batch", "train.solver": "trapezoid@4"},
        "train: an implicit solver goes without batch norm in the field",
    ),
    ({"train.jacobian": 0.1, "train.solver": "trapezoid@4"}, "train: jacobian goes without an implicit solver"),
    ({"train.jacobian": 0.1, "train.gradient": "checkpoint"}, "train: jacobian goes without the gradient `checkpoint`"),
    ({"train.solver": "layers@4"}, "a gode is trained with a solver, got layers@4"),
    ({**LAYERS, "train.solver": "rk4@4"}, "a lm_resnet is trained with `layers@N`, got rk4@4"),
    (
        {**LAYERS, "train.solver": "layers@4-4"},
        "train: layers@4-4 gives other numbers than one or 1, the blocks of raw",
    ),
    ({**LAYERS, "train.solver": "layers@4-"}, "train: solver `layers@4-`: write `layers@8` for 8 layers in each block"),
    ({**LAYERS, "model.time_scale": 2}, "model: a discrete net has no time: leave time_scale out"),
    ({**LAYERS, "model.time_channel": True}, "model: a discrete net has no time: leave time_channel out"),
    ({**LAYERS, "train.gradient": "checkpoint"}, "gradient `checkpoint` needs fixed steps, got layers@4"),
    (
        {**LAYERS, "train.phases": [{"until": 1, "solver": "euler@2"}]},
        "train: phases belong to nets with a solver, got",
    ),
    ({**LAYERS, "train.kinetic": 0.1}, "train: kinetic, jacobian and random_end belong to nets with a solver"),
    (
        {**LAYERS, "model.family": "revnet", "model.pad_channels": 3},
        "model: a revnet halves its channels, and 3 are odd",
    ),
    ({"seed": -1}, "seed must be at least 0, got -1"),
    ({"model.family": "resnet", "model.basis": ...}, "a resnet is trained with `euler@N`"),
    (
        {"model.family": "resnet", "model.basis": ..., "train.solver": "dopri5@1e-3"},
        "a resnet is trained with `euler@N` or `layers@N`, N its number of blocks, got dopri5@1e-3",
    ),
    ({"data.name": "cifar10", "model.pad_channels": 2}, "model: pad_channels must be at least 3, got 2"),
    ({**STEM, **{f"data.{k}": v for k, v in SPHERES["data"].items()}}, "model: network stem needs images, spheres are"),
    ({**STEM, "model.pad_channels": 4}, "model: pad_channels must be at least 8, got 4"),
    ({"model.field": "perceptron"}, "model: the field perceptron acts on points (spheres)"),
    ({**FAN, "data.name": "digits"}, "model: the field oscillator acts on points of the plane"),
    ({**FAN, "data.name": "spheres", "data.dimension": 3}, "model: the field oscillator acts on points of the plane"),
    (
        {"data.num_train": 50, "train.drop_last": True},
        "train: batch_size 64 with drop_last leaves no batch of 50 images",
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_no_job_can_be_is_refused_with_the_reason(changes, message):
    text = refusal(job(**changes))
    assert text.startswith("x.yaml: job: ")
    assert message in text
    assert "\n" not in text


def test_each_need_is_met_by_a_case_above():
    """So that no sentence of pipeline.config can be added untested."""
    found = (Path(__file__).parents[2] / "pipeline").glob("*config.py")
    sources = sorted(path for path in found if path.stem != "search_config")  # which is no part of a job
    assert len(sources) == 5
    calls = [node for s in sources for node in ast.walk(ast.parse(s.read_text())) if isinstance(node, ast.Call)]
    sentences = [ast.literal_eval(c.args[1]) for c in calls if isinstance(c.func, ast.Name) and c.func.id == "need"]
    assert len(sentences) > 80
    texts = [refusal(job(**changes)) for changes, _ in REFUSED]
    for sentence in sentences:
        literals = [re.escape(literal) + (".+" if name is not None else "") for literal, name, *_ in parts(sentence)]
        whole = re.compile("(^|: )" + "".join(literals) + "$")  # `record_every must be ...` is no case of `every ...`
        assert any(whole.search(text) for text in texts), sentence


def parts(sentence: str):
    return string.Formatter().parse(sentence)


def test_a_job_is_loaded_from_its_config_file_only_if_it_is_that_job(tmp_path):
    path, config = tmp_path / "config.json", read_job(JOB, "")
    path.write_text(json.dumps(canonical(config)))
    assert load_job(path, job_id(config)) == config
    with pytest.raises(ValueError, match=r"holds the job .*, not other; was it edited\?"):
        load_job(path, "other")
    path.write_text(path.read_text()[:-5])
    with pytest.raises(ValueError, match="not JSON"):
        load_job(path, job_id(config))
    path.unlink()
    with pytest.raises(ValueError, match="no such job"):
        load_job(path, job_id(config))


def test_the_names_that_config_allows_are_those_that_the_core_has():
    hints = typing.get_type_hints(BasisConfig)
    assert set(typing.get_args(hints["kind"])) == set(BASES)
    assert set(typing.get_args(typing.get_args(hints["knots"])[0])) == set(KNOTS) | {"free"}
    hints = typing.get_type_hints(EvolutionConfig)
    assert set(typing.get_args(hints["kind"])) == set(EVOLUTIONS)
    assert set(typing.get_args(hints["method"])) == set(TABLEAUS)


@pytest.mark.parametrize(
    ("changes", "basis", "label"),
    [
        ({}, clamped(1, 4), "gode-4c-degree1"),
        ({"model.basis.knots": "unclamped"}, KNOTS["unclamped"](1, 4), "gode-4c-degree1-unclamped"),
        ({"model.basis.knots": [0.2, "1/3"]}, clamped(1, 4, ["1/5", "1/3"]), "gode-4c-degree1-knots"),
        ({"model.basis": ..., "model.family": "neural_ode"}, clamped(0, 1), "neural-ode"),
        ({"model.basis": ..., "model.family": "resnet", "train.solver": "euler@6"}, clamped(0, 6), "resnet"),
    ],
)
def test_the_basis_and_the_label_of_each_family(changes, basis, label):
    config: JobConfig = read_job(job(**changes), "")
    assert (config.basis, config.label) == (basis, label)
