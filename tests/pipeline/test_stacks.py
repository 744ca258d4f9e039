"""Which jobs are trained side by side: what fits, and how an experiment's jobs are grouped."""

import dataclasses
import itertools
import os
from pathlib import Path

import pytest
from small import small_job

from pipeline.config import job_id
from pipeline.paths import Paths
from pipeline.stacks import LARGEST, MANY, MOST_NUMBERS, MOST_PLACES, TOGETHER, _stacks, alike, batches_of, fits

POINTS = {"name": "spheres", "dimension": 2, "num_train": 64, "num_validation": 50}
DIGITS = {"name": "digits", "dimension": None}
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
    "an image": {"data": DIGITS},
    "an image, padded": {"data": DIGITS, "model": {"pad_channels": 4}},
    "an image in the largest batch": {"data": DIGITS, "batch_size": MOST_NUMBERS // (64 * 4)},
}
DOES_NOT = {
    "an image in a large batch": {"data": DIGITS, "batch_size": MOST_NUMBERS // (64 * 4) + 1},
    "a large image": {"data": {"name": "mnist", "dimension": None, "num_train": 500}, "model": {"width": 64}},
    "an image net with a stem": {"data": DIGITS, "model": {"network": "stem", "field": "preactivation"}},
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
    return [stack.jobs for stack in batches_of(jobs_of(configs), Paths("here"), "judged")]


def seeds(number, **options):
    return [job(seed, **options) for seed in range(number)]


def test_jobs_that_differ_in_numbers_alone_stand_together_in_the_order_of_the_file():
    """Whatever stands between them; all others are left to themselves."""
    ones, twos, slow = seeds(3), seeds(2, solver="euler@4"), job(0, lr=1e-4)
    apart = [job(0, data={"dimension": 900}), job(1, data={"dimension": 900}), job(0, epochs=3)]
    mixed = [ones[2], apart[0], twos[1], ones[0], apart[1], slow, twos[0], apart[2], ones[1]]
    expected = [tuple(map(job_id, group)) for group in ([ones[2], ones[0], slow, ones[1]], [twos[1], twos[0]])]
    assert stacked(mixed) == expected


def test_jobs_on_images_stand_together_where_a_process_has_many():
    """Each could have a process, and a core, for itself; a fleet has more of them than processes."""
    jobs = jobs_of([*seeds(2, data=DIGITS), *seeds(2)])
    ones, twos = tuple(jobs)[:2], tuple(jobs)[2:]
    assert _stacks(jobs) == [(ones[0],), (ones[1],), twos]
    assert _stacks(jobs, images=True) == [ones, twos]


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
    configs = [*seeds(2 * LARGEST), *seeds(3, solver="euler@4"), *seeds(2, epochs=3)]
    stacks = batches_of(jobs_of(configs), Paths("here"), "judged")
    names = [stack.name for stack in stacks]
    assert len(set(names)) == 4
    (alone,) = batches_of(jobs_of(seeds(3, solver="euler@4")), Paths("there"), "otherwise")
    assert alone.name == names[2]
    (fewer,) = batches_of(jobs_of(seeds(2, solver="euler@4")), Paths("here"), "judged")
    assert fewer.name not in names
    assert (alone.train, alone.evaluate) == (f"train_{alone.name}", f"evaluate_{alone.name}")
    assert alone.train.isidentifier()


def test_snakemake_is_told_of_a_mark_alone():
    paths = Paths("here")
    (stack,) = batches_of(jobs_of(seeds(3)), paths, "judged")
    assert stack.configs == [paths.config(job) for job in stack.jobs]
    assert stack.trained == paths.batch_trained(stack.name)
    assert stack.judged == paths.batch_judged(stack.name, "judged")
    assert stack.data == (paths.data("spheres2"),)


def test_a_mark_that_is_no_longer_true_is_deleted(tmp_path):
    """A job's folder was deleted, to have it trained again."""
    paths = Paths(str(tmp_path))
    (stack,) = batches_of(jobs_of(seeds(2)), paths, "judged")
    everything = [file for job in stack.jobs for file in (*paths.trained(job), *paths.judged(job, "judged"))]
    for file in (stack.trained, stack.judged, *everything):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).touch()
    stack.retract()
    assert Path(stack.trained).exists()
    assert Path(stack.judged).exists()
    later = Path(paths.model(stack.jobs[1])).stat().st_mtime + 10
    os.utime(paths.model(stack.jobs[1]), (later, later))  # trained again, in other company
    stack.retract()
    assert Path(stack.trained).exists()
    assert not Path(stack.judged).exists()
    Path(stack.judged).touch()
    os.utime(paths.evaluation(stack.jobs[1], "judged"), (later, later))
    stack.retract()
    assert Path(stack.judged).exists()
    Path(paths.trajectories(stack.jobs[1], "judged")).unlink()
    stack.retract()
    assert Path(stack.trained).exists()
    assert not Path(stack.judged).exists()
    Path(paths.weights(stack.jobs[0])).unlink()
    stack.retract()
    assert not Path(stack.trained).exists()


def test_what_takes_longest_comes_first():
    configs = [*seeds(2), *seeds(2, solver="rk4@4", epochs=5), *seeds(2, solver="ab2@8")]
    found = [stack.priority for stack in batches_of(jobs_of(configs), Paths(), "judged")]
    evals = [2 * 2, 5 * 16, 2 * job(solver="ab2@8").train.parsed_solver.num_evals]
    assert [priority / found[0] for priority in found] == pytest.approx([count / evals[0] for count in evals])


def images(number, **options):
    return [small_job(seed, **options) for seed in range(number)]


def sizes(configs, together=None):
    return [len(batch.jobs) for batch in batches_of(jobs_of(configs), Paths(), "judged", together)]


def test_small_jobs_share_a_process_where_they_are_many():
    assert sizes(images(MANY - 1)) == []
    assert sizes(images(MANY)) == [TOGETHER] * (MANY // TOGETHER) + [MANY % TOGETHER]


def test_as_many_share_a_process_as_is_asked_for():
    assert sizes(images(7), together=3) == [3, 3]
    assert sizes(images(MANY), together=1) == []
    large = [dataclasses.replace(c, train=dataclasses.replace(c.train, epochs=10**6)) for c in images(7)]
    assert sizes(large, together=3) == []


def test_stacks_are_packed_whole():
    points = [*seeds(3), *seeds(3, solver="euler@4"), *seeds(3, epochs=3)]
    assert sizes(points, together=6) == [6, 3]
    assert sizes(points, together=2) == [3, 3, 3]


def test_a_seed_more_leaves_the_batches_of_the_others_as_they_are():
    def names(number):
        rates = [1e-3 * (i + 1) for i in range(4)]
        configs = [small_job(seed, lr=rate) for rate in rates for seed in range(number)]
        return {batch.name for batch in batches_of(jobs_of(configs), Paths(), "judged", 4)}

    assert len(names(3)) == 3
    assert names(3) < names(4)
