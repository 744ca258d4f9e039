"""Which jobs are trained side by side: what fits, and how an experiment's jobs are grouped."""

import itertools

import pytest
from small import small_job

from pipeline.config import job_id
from pipeline.paths import Paths
from pipeline.stacks import LARGEST, MOST_PLACES, alike, fits, stacks_of

POINTS = {"name": "spheres", "dimension": 2, "num_train": 64, "num_validation": 50}
PLAIN = {"pad_channels": None}
HATS = {"degree": 1, "num_coefficients": 4}
GODE = {"family": "gode", "basis": HATS}
PHASE = {"until": 1, "solver": "euler@1"}


def job(seed=0, data=None, model=None, **train):
    return small_job(seed, POINTS | (data or {}), PLAIN | (model or {}), **train)


FITS = {
    "neural_ode": {},
    "gode": {"model": GODE},
    "constant biases": {"model": GODE | {"vary": "kernels"}},
    "resnet": {"model": {"family": "resnet"}},
    "perceptron": {"model": {"field": "perceptron"}},
    "a perceptron of many coordinates": {"model": {"field": "perceptron"}, "data": {"dimension": 900}},
    "ten places": {"data": {"dimension": 10}},
    "rk4": {"solver": "rk4@2"},
    "multistep": {"solver": "ab2@4"},
    "recomputed": {"gradient": "checkpoint"},
    "xor": {"data": {"name": "xor", "dimension": None, "num_train": None, "num_validation": 0}},
    "clipped, smoothed": {"clip_norm": 1.0, "label_smoothing": 0.1},
}
DOES_NOT = {
    "an image": {"data": {"name": "digits", "dimension": None}},
    "padded": {"model": {"pad_channels": 2}},
    "padded coordinates": {"model": {"field": "perceptron", "pad_channels": 3}},
    "a convolution over many places": {"data": {"dimension": 900}},
    "a fan": {"model": {"field": "oscillator", "fan": [0.0, 0.0, 1.0, 2.0]}},
    "a time channel": {"model": {"time_channel": True}},
    "free knots": {"model": {"family": "gode", "basis": HATS | {"knots": "free"}}},
    "evolving": {"model": {"family": "evolving", "evolution": {"kind": "linear"}}},
    "discrete": {"model": {"family": "resnet"}, "solver": "layers@2"},
    "adaptive": {"solver": "dopri5@1e-3"},
    "implicit": {"solver": "trapezoid@2"},
    "phases": {"phases": [PHASE]},
    "a rule for the solver": {"adapt": {"rule": "step"}},
    "kinetic": {"kinetic": 0.1},
    "jacobian": {"jacobian": 0.1},
    "a random end": {"random_end": 0.1},
    "16 bits": {"autocast": "bf16"},
}


@pytest.mark.parametrize("kind", FITS)
def test_what_fits(kind):
    config = job(**FITS[kind])
    assert fits(config)
    assert alike([config, job(1, **FITS[kind])])


@pytest.mark.parametrize("kind", DOES_NOT)
def test_what_does_not_fit(kind):
    """However alike they are."""
    config = job(**DOES_NOT[kind])
    assert not fits(config)
    assert not alike([config, job(1, **DOES_NOT[kind])])
    assert stacked([config, job(1, **DOES_NOT[kind])]) == []


def test_ten_places_are_the_most():
    assert job(**FITS["ten places"]).data.shape[-1] == MOST_PLACES


def jobs_of(configs):
    return {job_id(config): config for config in configs}


def stacked(configs):
    return [stack.jobs for stack in stacks_of(jobs_of(configs), Paths("here"), "judged")]


def seeds(number, **options):
    return [job(seed, **options) for seed in range(number)]


def test_jobs_that_differ_in_the_seed_alone_stand_together_in_the_order_of_the_file():
    """Whatever stands between them; all others are left to themselves."""
    ones, twos = seeds(3), seeds(2, solver="euler@4")
    apart = [job(0, data={"dimension": 900}), job(1, data={"dimension": 900}), job(0, lr=1e-4)]
    mixed = [ones[2], apart[0], twos[1], ones[0], apart[1], twos[0], apart[2], ones[1]]
    expected = [tuple(map(job_id, group)) for group in ([ones[2], ones[0], ones[1]], [twos[1], twos[0]])]
    assert stacked(mixed) == expected


@pytest.mark.parametrize(
    ("number", "sizes"),
    [(1, []), (2, [2]), (LARGEST, [LARGEST]), (LARGEST + 1, [LARGEST]), (2 * LARGEST + 3, [LARGEST, LARGEST, 3])],
)
def test_a_stack_has_from_two_to_the_largest_number_of_jobs(number, sizes):
    """One that is left over is trained by itself."""
    found = stacked(seeds(number))
    assert [len(some) for some in found] == sizes
    flat = list(itertools.chain.from_iterable(found))
    assert flat == list(jobs_of(seeds(number)))[: len(flat)]


def test_names_are_unique_and_those_of_the_jobs_alone():
    """Not of the rest of the experiment, the folder or the judging."""
    configs = [*seeds(2 * LARGEST), *seeds(3, solver="euler@4"), *seeds(2, lr=1e-4)]
    stacks = stacks_of(jobs_of(configs), Paths("here"), "judged")
    names = [stack.name for stack in stacks]
    assert len(set(names)) == 4
    (alone,) = stacks_of(jobs_of(seeds(3, solver="euler@4")), Paths("there"), "otherwise")
    assert alone.name == names[2]
    (fewer,) = stacks_of(jobs_of(seeds(2, solver="euler@4")), Paths("here"), "judged")
    assert fewer.name not in names
    assert (alone.train, alone.evaluate) == (f"train_{alone.name}", f"evaluate_{alone.name}")
    assert alone.train.isidentifier()


def test_a_stack_has_the_files_of_all_its_jobs():
    paths = Paths("here")
    (stack,) = stacks_of(jobs_of(seeds(3)), paths, "judged")
    one, two, three = stack.jobs
    assert stack.configs == [paths.config(one), paths.config(two), paths.config(three)]
    assert stack.models == [paths.model(one), paths.model(two), paths.model(three)]
    assert stack.trained == [*paths.trained(one), *paths.trained(two), *paths.trained(three)]
    assert stack.judged == [file for each in stack.jobs for file in paths.judged(each, "judged")]
    assert stack.data == paths.data("spheres2")


def test_what_takes_longest_comes_first():
    configs = [*seeds(2), *seeds(2, solver="rk4@4", epochs=5), *seeds(2, solver="ab2@8")]
    found = stacks_of(jobs_of(configs), Paths(), "judged")
    assert [stack.priority for stack in found] == [2 * 2, 5 * 16, 2 * job(solver="ab2@8").train.parsed_solver.num_evals]
