"""What every family must be able to do. The families are the jobs of digits-families.yaml, made smaller: a new one must
be a job there, or the first test is red."""

import dataclasses
import typing

import pytest
import torch
from small import on_cpu

from gode_core.bases import BASES
from gode_core.discrete import RULES
from gode_core.evolution import EVOLUTIONS
from gode_core.solvers import IMPLICIT_METHODS, MULTISTEPS, Fixed, Layers, parse_solver
from pipeline import build, checkpoint
from pipeline.build import build_network
from pipeline.config import JobConfig, job_id
from pipeline.counting import evals_per_solve
from pipeline.evaluate import evaluate
from pipeline.experiment import Judging, load_experiment
from pipeline.model_config import BasisConfig, ModelConfig
from pipeline.training import Training

EXPERIMENT = load_experiment("pipeline/experiments/digits-families.yaml")


def smaller(config: JobConfig) -> JobConfig:
    """Two epochs of three batches and three steps or layers; a phase ends after the first."""
    phases = tuple(dataclasses.replace(phase, until=1) for phase in config.train.phases)
    data = dataclasses.replace(config.data, num_train=96, num_validation=32)
    method = config.train.solver.partition("@")[0]
    train = dataclasses.replace(config.train, solver=f"{method}@3", epochs=2, phases=phases)
    model = dataclasses.replace(config.model, width=4)
    return JobConfig(data, model, train, config.seed)


def differs(config: JobConfig) -> str:
    """A name for the test: what is no default."""
    model, train = config.model, config.train
    words = [config.label, train.solver, model.norm if model.network == "stages" else ""]
    rule = {f.name: getattr(model.rule, f.name) for f in dataclasses.fields(model.rule)}
    words += [name for name, value in rule.items() if value != getattr(ModelConfig.rule, name)]
    words += [name for name in ("kinetic", "random_end", "phases") if getattr(train, name)]
    return " ".join(filter(None, [*words, "time channel" if model.time_channel else ""]))


CASES = {differs(config): smaller(config) for config in EXPERIMENT.jobs.values()}
every_family = pytest.mark.parametrize("config", CASES.values(), ids=CASES)


def names(cls: type, field: str) -> set[str]:
    hint = typing.get_type_hints(cls)[field]
    literals = [a for a in (hint, *typing.get_args(hint)) if typing.get_origin(a) is typing.Literal]
    return {name for literal in literals for name in typing.get_args(literal)}


def test_every_family_is_among_the_cases():
    assert len(CASES) == len(EXPERIMENT.jobs), "two jobs have one name: make `differs` tell them apart"
    models = [config.model for config in CASES.values()]
    assert {model.family for model in models} == names(ModelConfig, "family")
    assert {model.norm for model in models} == names(ModelConfig, "norm")
    assert {model.field for model in models} == names(ModelConfig, "field") - {"perceptron", "oscillator"}  # of points
    assert {model.basis.kind for model in models if model.basis} == names(BasisConfig, "kind") == set(BASES)
    assert "free" in {model.basis.knots for model in models if model.basis}
    assert {model.evolution.kind for model in models if model.evolution} == set(EVOLUTIONS)
    discrete = {c.model.family for c in CASES.values() if isinstance(c.train.parsed_solver, Layers)}
    assert {build.FAMILY_RULES[family][0] for family in discrete} == set(RULES)
    methods = {config.train.solver.partition("@")[0] for config in CASES.values()}
    assert methods & set(MULTISTEPS)
    assert methods >= set(IMPLICIT_METHODS)


def images(number: int = 4) -> torch.Tensor:
    return torch.rand(number, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def trained(config: JobConfig, stop_at: int | None = None) -> Training:
    """Trained to the end, or to optimiser step `stop_at`."""
    training = Training(config, job_id(config), on_cpu())
    go_on(training, stop_at)
    return training


def go_on(training: Training, stop_at: int | None = None) -> None:
    while not training.finished and training.run_epoch(lambda: training.step == stop_at):
        pass


@every_family
def test_forward_shape_and_a_gradient_for_every_parameter(config):
    """After the first epoch: some parameters of evolving weights have none in the first step (see `laws`)."""
    training = trained(config, stop_at=4)  # within the last phase
    network = training.learner.network.train()
    network.zero_grad()
    logits = network.predict(images(), training.solver, training.learner.phase.gradient).logits
    assert logits.shape == (4, 10)
    torch.nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without


@every_family
def test_the_plan_counts_the_evaluations_that_the_network_makes(config):
    solver, network = config.train.parsed_solver, build_network(config)
    if isinstance(solver, Fixed | Layers):
        made = sum(solution.num_evals for solution in network.eval().predict(images(), solver).solutions)
        assert evals_per_solve(config, config.phase(config.train.epochs)) == network.num_evals(solver) == made


@every_family
def test_a_model_that_was_saved_and_loaded_predicts_the_same(config, tmp_path):
    training = trained(config)
    assert training.status == "ok"
    checkpoint.save_model(tmp_path / "model.safetensors", config, training.final_network())
    loaded = build_network(config)
    checkpoint.load_model(tmp_path / "model.safetensors", loaded)
    solver = config.train.parsed_solver
    logits = [net.eval().predict(images(), solver).logits for net in (training.final_network(), loaded)]
    assert torch.equal(*logits)


@every_family
def test_interrupted_equals_uninterrupted_bit_for_bit(config, tmp_path):
    """Within the first epoch; `test_phases` has the other places."""
    whole, first = trained(config), trained(config, stop_at=2)
    assert not first.finished
    checkpoint.save(tmp_path / "resume.pt", config, first.state())
    second = Training(config, job_id(config), on_cpu())
    second.restore(checkpoint.load(tmp_path / "resume.pt", config))
    go_on(second)
    assert second.records == whole.records
    assert_equal(second.state(), whole.state())


def assert_equal(one, other) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict | list | tuple):
        assert len(one) == len(other)
        for key in one if isinstance(one, dict) else range(len(one)):
            assert_equal(one[key], other[key])
    else:
        assert one == other


@every_family
def test_other_solvers_judge_it_or_are_refused_with_the_reason(config):
    network, own = build_network(config), config.train.parsed_solver
    few = Judging(("euler@16", "rk4@8", "ab4@16", "trapezoid@4", "dopri5@1e-4"))
    solvers = [parse_solver(text) for text in few.solvers_of(config)]
    batch = [(images(), torch.arange(4))]
    limit = own if isinstance(own, Layers) else parse_solver(few.finest)
    tallies = evaluate(network, own, limit, solvers, batch, max_steps=1000)
    assert list(tallies) == list(dict.fromkeys([*solvers, own]))
    assert {tally.status for tally in tallies.values()} == {"ok"}
    if isinstance(own, Layers):
        assert solvers == [own]
        with pytest.raises(ValueError, match="this net is discrete, no solver of ODEs can judge it"):
            network.predict(images(), Fixed("euler", 4))
    else:
        assert len(solvers) == 5
        fine = [network.predict(images(), parse_solver(text)).logits for text in ("rk4@24", "dopri5@1e-4")]
        torch.testing.assert_close(*fine, rtol=0, atol=0.02)  # it is a flow: two fine solvers find the same
        with pytest.raises(ValueError, match="names the layers of a discrete net"):
            network.predict(images(), Layers((4,)))


@pytest.mark.slow
@every_family
def test_it_compiles_into_one_graph_and_computes_the_same(config):
    """With the tracer alone (`aot_eager`): what a code generator does to it is torch's business."""
    solver, network = config.train.parsed_solver, build_network(config)
    if not isinstance(solver, Fixed | Layers):
        solver = Fixed("rk4", 2)  # such a solver cannot be traced, the family can
    network.prepare(solver)
    with torch.no_grad():  # off the kinks of ReLU, where a RevNet's recomputed states may fall on the other side
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.05)
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    torch.compiler.reset()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    modes = ["eval"] if build.is_random(config) else ["eval", "train"]
    for mode in modes:
        getattr(network, mode)()
        found = []
        for call in (network, compiled):
            network.zero_grad()
            network.load_state_dict(start)  # batch norm's statistics
            logits = call(images(), solver)
            logits.square().sum().backward()
            found.append([logits.detach(), *(p.grad for p in network.parameters())])
        for eager, traced in zip(*found):
            torch.testing.assert_close(traced, eager, rtol=1e-3, atol=2e-4)
