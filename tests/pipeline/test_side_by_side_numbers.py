"""The laws of trainings side by side where each has numbers of its own, and on images; and that all of them, of any
size, are those of plain networks under torch.optim, to rounding."""

import pytest
from small import on_cpu, small_job
from test_side_by_side import (
    KINDS,
    MODELS,
    SEEDS,
    apart,
    bits,
    check_against,
    job,
    one_by_one,
    rows,
    stop_after,
    written,
)

from pipeline import checkpoint
from pipeline.build import build_network
from pipeline.side_by_side import SideBySide
from pipeline.stacks import alike
from pipeline.train import train
from pipeline.training import Training

# of three jobs, for each optimiser: all that they may differ in
OWN = [
    {"lr": 1e-3, "weight_decay": 0.1, "label_smoothing": 0.2},
    {"lr": 2e-2, "schedule": "cosine", "warmup_epochs": 0.5, "clip_norm": 0.2},
    {"lr": 5e-3, "weight_decay": 1e-3, "schedule": "multistep", "milestones": [1], "decay": 0.5}
    | {"changes": [{"epoch": 1, "lr": 1e-2, "weight_decay": 0.2}]},
]
OPTIMISERS = {
    "adam": {},
    "adamw": {"optimiser": "adamw"},
    "sgd": {"optimiser": "sgd"},
    "momentum": {"optimiser": "sgd", "momentum": 0.9},
}


def image_job(seed=0, model="gode", width=16, num_train=112, **train):
    """On digits: batches of 32, 32, 32 and 16."""
    size = {"width": width, "pad_channels": 4}
    return small_job(seed, {"num_train": num_train}, size | MODELS[model], **{"batch_size": 32} | train)


def own_jobs(optimiser, make=job, **more):
    """The same seed for two of them."""
    return [make(seed, **OPTIMISERS[optimiser], **own, **more) for seed, own in zip((0, 0, 1), OWN)]


@pytest.mark.parametrize(("optimiser", "make"), [*((name, job) for name in OPTIMISERS), ("adam", image_job)])
def test_with_numbers_of_their_own_too(tmp_path, optimiser, make):
    configs = own_jobs(optimiser, make)
    paths, jobs = written(tmp_path / "together", configs)
    assert alike(configs)
    assert train(jobs, paths, on_cpu(), lambda: False)
    check_against(tmp_path / "alone", paths, jobs)
    assert len({model for model, _ in bits(paths, jobs).values()}) == len(configs)


@pytest.mark.parametrize("model", ["neural_ode", "resnet", "gode"])
def test_on_images_each_ends_with_the_bits_that_it_has_alone(tmp_path, model):
    paths, jobs = written(tmp_path / "together", [image_job(seed, model) for seed in range(SEEDS)])
    assert train(jobs, paths, on_cpu(), lambda: False)
    check_against(tmp_path / "alone", paths, jobs)


PLAIN = ("sgd", "momentum, cosine, warm-up", "clipping", "smoothing")
ODD = {kind: [job(seed, data={"num_train": 201}, width=7, **KINDS[kind]) for seed in range(SEEDS)] for kind in PLAIN}
ODD |= {f"own, {name}": own_jobs(name, data={"num_train": 201}, width=7) for name in ("sgd", "momentum")}
ODD |= {"images": [image_job(seed, width=7, num_train=101, **KINDS["clipping"]) for seed in range(SEEDS)]}
ODD |= {"images, own": own_jobs("momentum", image_job, width=7, num_train=101)}


@pytest.mark.parametrize("kind", ODD)
def test_of_any_size_each_ends_with_the_numbers_that_it_has_alone_and_as_a_plain_network(tmp_path, kind):
    """To rounding, at an odd width and with an odd last batch; `Training` by itself is no stack."""
    configs = ODD[kind]
    paths, jobs = written(tmp_path / "together", configs)
    assert train(jobs, paths, on_cpu(), lambda: False)
    alone, _ = one_by_one(tmp_path / "alone", configs)
    for name, config in jobs.items():
        plain = Training(config, name, on_cpu())
        while not plain.finished:
            plain.run_epoch(lambda: False)
        own = [build_network(config), build_network(config)]
        for network, root in zip(own, (paths, alone)):
            checkpoint.load_model(root.model(name), network)
            assert apart(network, plain.learner.network) < 1e-4
        begun = build_network(config)
        assert apart(begun, plain.learner.network) > 1e-2
        assert [r.validation_loss for r in rows(paths, name)] == pytest.approx(
            [r.validation_loss for r in plain.records], rel=1e-4
        )


@pytest.mark.parametrize(("optimiser", "make"), [("adamw", job), ("momentum", image_job)])
def test_resumed_in_other_company_each_keeps_its_own_numbers(tmp_path, optimiser, make):
    paths, jobs = written(tmp_path / "parts", own_jobs(optimiser, make))
    first, second, third = jobs
    for some, steps in (((first, third), 3), ((second,), 3), (jobs, 2), ((third, second), 2)):
        assert not train({name: jobs[name] for name in some}, paths, on_cpu(), stop_after(steps))
    assert train(jobs, paths, on_cpu(), lambda: False)
    check_against(tmp_path / "alone", paths, jobs)


def test_settled_trainings_have_the_state_that_they_have_alone(tmp_path):
    """In the middle of an epoch: weights, the optimiser's state, its rates, sums and place."""
    configs = own_jobs("momentum")
    together = [Training(config, "", on_cpu()) for config in configs]
    side = SideBySide(together)
    assert not side.run_epoch(stop_after(3))
    side.settle()
    for config, training in zip(configs, together):
        alone = Training(config, "", on_cpu())
        assert not alone.run_epoch(stop_after(3))
        one, other = training.state(), alone.state()
        assert one.pop("sums") == pytest.approx(other.pop("sums"), rel=1e-6)
        assert str(one) == str(other)
    before = [str(training.state()) for training in together]
    side.settle()
    assert [str(training.state()) for training in together] == before
