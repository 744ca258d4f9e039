"""From an experiment file to jobs: what it says, and how mistakes in it are answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import job_id
from pipeline.experiment import Budget, Judging, Published, expand, load_experiment

SHIPPED = sorted((Path(__file__).parents[2] / "pipeline" / "experiments").glob("*.yaml"))

TEXT = """\
question: Does depth matter?
job:
  data: {name: digits, num_validation: 37}
  model: {network: raw, family: neural_ode, width: 8}
  train:
    solver: euler@4
    optimiser: adam
    lr: 1e-3
    epochs: 2
    batch_size: 100
sweep:
  train.solver: [euler@4, rk4@2]
  seed: [0, 1, 2]
evaluate_with:
  solvers: [euler@4, dopri5@1e-5]
"""


PRINTED = """\
published:
  - {claim: a, measure: critical_evals, low: 2, high: 4, source: 'Table 1'}
  - {claim: b, measure: accuracy, low: 0.9, high: 0.95, source: 'Figure 2', of: [seed=0]}
"""


def printed(old: str = "", new: str = "") -> str:
    """The section above with one place changed."""
    assert old in PRINTED
    return PRINTED.replace(old, new, 1)


@pytest.fixture
def write(tmp_path):
    def write(old: str = "", new: str = "") -> Path:
        """The experiment above with one place changed."""
        assert old in TEXT
        path = tmp_path / "small.yaml"
        path.write_text(TEXT.replace(old, new, 1), encoding="utf-8")
        return path

    return write


def refusal(path: Path) -> str:
    with pytest.raises(ValueError) as error:
        load_experiment(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


def test_the_repository_ships_an_experiment():
    assert SHIPPED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_each_shipped_experiment_loads(path):
    experiment = load_experiment(path)
    assert experiment.name == path.stem
    assert experiment.jobs or experiment.search
    assert all(job_id(config) == key for key, config in experiment.jobs.items())


def test_an_experiment_is_its_jobs_and_how_they_are_judged(write):
    experiment = load_experiment(write())
    assert (experiment.name, experiment.question) == ("small", "Does depth matter?")
    assert experiment.evaluate_with == Judging(("euler@4", "dopri5@1e-5"))
    chosen = [(config.train.solver, config.seed) for config in experiment.jobs.values()]
    assert chosen == [(solver, seed) for solver in ("euler@4", "rk4@2") for seed in (0, 1, 2)]
    assert {config.train.lr for config in experiment.jobs.values()} == {0.001}


@pytest.mark.parametrize("sweep", ["", "sweep:\n", "sweep: {}\n"])
def test_without_a_sweep_there_is_one_job(write, sweep):
    block = TEXT[TEXT.index("sweep:") : TEXT.index("evaluate_with:")]
    assert len(load_experiment(write(block, sweep)).jobs) == 1


@pytest.mark.parametrize("name", ["other", "Other_2-b", "x"])
def test_a_name_may_be_given(write, name):
    assert load_experiment(write("question:", f"name: {name}\nquestion:")).name == name


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("[euler@4, dopri5@1e-5]", "[rk4@8]", False),
        ("Does depth matter?", "Does it?", True),
        ("evaluate_with:", f"{PRINTED}evaluate_with:", True),
        *[
            ("evaluate_with:", f"evaluate_with:\n  {line}", False)
            for line in (
                *("split: validation", "batch_size: 10", "max_steps: 10", "limit: euler@4", "margin: 0.02"),
                *("confidence: 0.9", "num_paths: 8", "num_paths: 8\n  num_drawn: 4"),
            )
        ],
    ],
)
def test_how_jobs_are_judged_is_no_part_of_their_ids(write, old, new, same):
    """And each way to judge has an id of its own."""
    one, other = load_experiment(write()), load_experiment(write(old, new))
    assert list(one.jobs) == list(other.jobs)
    assert (one.evaluate_with.id == other.evaluate_with.id) == same


def test_what_is_in_print_is_read_and_without_it_there_is_none(write):
    assert load_experiment(write()).published == ()
    assert load_experiment(write("evaluate_with:", "published:\nevaluate_with:")).published == ()
    first, second = load_experiment(write("evaluate_with:", f"{PRINTED}evaluate_with:")).published
    assert first == Published("a", "critical_evals", 2.0, 4.0, "Table 1")
    assert (second.measure, second.low, second.high, second.of) == ("accuracy", 0.9, 0.95, ("seed=0",))


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("", None),
        ("budget: {gpu_hours: 40}\n", Budget(gpu_hours=40.0)),
        ("budget: {core_hours: 0.5, gpu_hours: 1e1}\n", Budget(10.0, 0.5)),
    ],
)
def test_a_budget_may_be_given_and_is_no_part_of_ids_or_judging(write, text, budget):
    experiment, without = load_experiment(write("sweep:", f"{text}sweep:")), load_experiment(write())
    assert experiment.budget == budget
    assert list(experiment.jobs) == list(without.jobs)
    assert experiment.evaluate_with.id == without.evaluate_with.id


def test_a_swept_mapping_is_merged_into_its_section():
    base = {"model": {"width": 8, "basis": {"degree": 1, "knots": "unclamped"}}, "seed": 0}
    sweep = {"model": [{"family": "gode", "basis": {"degree": 3}}, {"basis": None}], "data.name": ["digits"]}
    (_, first), (words, second) = expand(base, sweep, "")
    assert first["model"] == {"width": 8, "family": "gode", "basis": {"degree": 3, "knots": "unclamped"}}
    assert second == {"model": {"width": 8, "basis": None}, "data": {"name": "digits"}, "seed": 0}
    assert words == 'model = {"basis": null}, data.name = "digits"'
    assert base == {"model": {"width": 8, "basis": {"degree": 1, "knots": "unclamped"}}, "seed": 0}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "question:",
            "questoin:",
            "unknown key `questoin`. Did you mean `question`? Known keys: budget, evaluate_with, job",
        ),
        ("sweep:", "sweeps:", "unknown key `sweeps`. Did you mean `sweep`?"),
        ("question: Does depth matter?\n", "", "`question` is missing. Known keys: name, question, job"),
        ("evaluate_with:\n  solvers: [euler@4, dopri5@1e-5]\n", "", "`evaluate_with` is missing."),
        ("Does depth matter?", "", "question: must be text, got None"),
        ("Does depth matter?", "' '", "question: must be text, got ' '"),
        ("Does depth matter?", "[a, b]", "question: must be text, got ['a', 'b']"),
        *[
            ("question:", f"name: {name}\nquestion:", "name: must be text of letters, digits, `-` and `_`, got")
            for name in ("a b", "../up", "a/b", "", "2024", "'-x'", "[a]", "'a.b'")
        ],
        ("width:", "widht:", 'job with train.solver = "euler@4", seed = 0: model: unknown key `widht`. Did you mean'),
        ("lr: 1e-3", "lr: fast", "train: lr: must be a number, got 'fast'"),
        ("epochs: 2", "epochs: true", "train: epochs: must be a whole number, got True"),
        ("lr: 1e-3", "lr: .inf", "train: lr: must be a number, got inf"),
        ("[0, 1, 2]", "[]", "sweep: seed: must be a list of values, got []"),
        ("[0, 1, 2]", "3", "sweep: seed: must be a list of values, got 3"),
        ("  seed:", "  sede:", "sede = 0: unknown key `sede`. Did you mean `seed`?"),
        ("train.solver:", "train.sovler:", "train: unknown key `sovler`. Did you mean `solver`?"),
        ("train.solver:", "train.solver.steps:", "train: solver: must be text, got {'steps': 'euler@4'}"),
        ("[0, 1, 2]", "[0, 1, 0]", 'seed = 0: equals the job with train.solver = "euler@4", seed = 0; each job may'),
        ("[euler@4, rk4@2]", "[euler@4, euler@04]", 'equals the job with train.solver = "euler@4", seed = 0'),
        ("seed: [0, 1, 2]", "train.lr: [1, 1.0]", "train.lr = 1.0: equals the job with"),
        ("[euler@4, dopri5@1e-5]", "[]", "evaluate_with: solvers: at least one is needed"),
        ("[euler@4, dopri5@1e-5]", "euler@4", "evaluate_with: solvers: must be a list, got 'euler@4'"),
        (
            "[euler@4, dopri5@1e-5]",
            "[euler]",
            "evaluate_with: solver `euler`: `euler` has fixed steps; write `euler@8`",
        ),
        (
            "[euler@4, dopri5@1e-5]",
            "[dopri5@1e-5, dopri5@0.00001]",
            "evaluate_with: solvers: dopri5@1e-5 stands twice",
        ),
        ("evaluate_with:", "evaluate_with:\n  batch_size: 0", "evaluate_with: batch_size must be at least 1, got 0"),
        ("evaluate_with:", "evaluate_with:\n  max_steps: 0", "evaluate_with: max_steps must be at least 1, got 0"),
        ("evaluate_with:", "evaluate_with:\n  split: train", "evaluate_with: split: `train` is not known."),
        ("  lr: 1e-3", "  lr: 1e-3\n    lr: 1e-2", "line 9: `lr` stands twice"),
        ("sweep:", "job: {}\nsweep:", "line 11: `job` stands twice"),
        ("{name: digits, num_", "{name: digits, name: mnist, num_", "line 3: `name` stands twice"),
        (
            "evaluate_with:",
            "evaluate_with:\n  limit: rk4@8",
            "evaluate_with: limit: rk4@8 must stand among the solvers",
        ),
        ("evaluate_with:", "evaluate_with:\n  limit: rk8", "evaluate_with: solver `rk8`"),
        *[
            ("evaluate_with:", f"evaluate_with:\n  {name}: {value}", f"{name} must lie in (0, 1), got {value}")
            for name in ("margin", "confidence")
            for value in ("0.0", "1.0", "-0.1")
        ],
        ("evaluate_with:", "evaluate_with:\n  num_paths: -1", "num_drawn must lie in [0, num_paths], got 0"),
        ("evaluate_with:", "evaluate_with:\n  num_drawn: -1", "num_drawn must lie in [0, num_paths], got -1"),
        ("evaluate_with:", "evaluate_with:\n  num_drawn: 1", "num_drawn must lie in [0, num_paths], got 1"),
        *[
            ("evaluate_with:", f"published: {wrong}\nevaluate_with:", f"published: must be a list, got {wrong}")
            for wrong in ("{'claim': 'x'}", "'x'", "3")
        ],
        ("evaluate_with:", "published: [x]\nevaluate_with:", "published[0]: must be a mapping, got 'x'"),
        *[
            ("evaluate_with:", f"{printed(old, new)}evaluate_with:", f"published[1]: {message}")
            for old, new, message in (
                ("claim: b, ", "", "`claim` is missing"),
                ("claim: b", "claim: b, colour: red", "unknown key `colour`. Known keys: claim,"),
                ("measure: accuracy", "measure: acuracy", "measure: `acuracy` is not known. Did you mean `accuracy`?"),
                ("low: 0.9", "low: 0.99", "low must not be above high, got 0.99 and 0.95"),
                ("low: 0.9", "low: some", "low: must be a number, got 'some'"),
                ("low: 0.9", "low: 0.9, margin: 0.1", "a margin belongs to the measures critical_..., not to accuracy"),
                (
                    "measure: accuracy, low: 0.9",
                    "measure: critical_accuracy, margin: 10, low: 0.9",
                    "margin must lie in (0, 1), got 10",
                ),
                ("seed=0", "seed", "of: write `column=value`, got ['seed']"),
                ("seed=0", "'se ed=0'", "of: write `column=value`, got ['se ed=0']"),
                ("seed=0", "seed=", "of: write `column=value`, got ['seed=']"),
            )
        ],
        *[
            ("sweep:", f"budget: {wrong}\nsweep:", f"budget: {message}")
            for wrong, message in (
                ("", "must be a mapping, got None"),
                ("40", "must be a mapping, got 40"),
                ("{}", "give `gpu_hours`, `core_hours` or both"),
                (
                    "{gpu_hour: 4}",
                    "unknown key `gpu_hour`. Did you mean `gpu_hours`? Known keys: core_hours, gpu_hours.",
                ),
                ("{gpu_hours: 0}", "gpu_hours must be positive, got 0.0"),
                ("{gpu_hours: 4, core_hours: -1}", "core_hours must be positive, got -1.0"),
                ("{core_hours: many}", "core_hours: must be a number, got 'many'"),
                ("{core_hours: .inf}", "core_hours: must be a number, got inf"),
            )
        ],
        ("[0, 1, 2]", "[0, 1", "line 14"),
        ("epochs: 2", "epochs:\t2: 3", "line 9"),
        ("epochs: 2", "epochs: !!python/object:os.system 2", "could not determine a constructor"),
    ],
)
def test_a_mistake_is_answered_in_one_line_with_its_place(write, old, new, message):
    assert message in refusal(write(old, new))


def test_a_job_or_a_sweep_of_the_wrong_shape_is_refused(write):
    job, sweep = TEXT[TEXT.index("job:") : TEXT.index("sweep:")], TEXT[TEXT.index("sweep:") : TEXT.index("evaluate")]
    assert refusal(write(job, "job: digits\n")) == "job: must be a mapping, got 'digits'"
    for wrong in ("[]", "[seed]", "seed", "0"):
        assert "sweep: must map fields to lists of values" in refusal(write(sweep, f"sweep: {wrong}\n"))


def test_validation_images_are_needed_where_they_are_judged_by(write):
    path = write("evaluate_with:", "evaluate_with:\n  split: validation")
    assert load_experiment(path).evaluate_with.split == "validation"
    path.write_text(path.read_text().replace(", num_validation: 37", ""))
    assert "evaluate_with: the split `validation` needs `num_validation` in the data of each job" in refusal(path)


def test_an_anchor_may_be_merged_and_overridden(write):
    """`<<` with a key of one's own is no key that stands twice."""
    path = write("  train:\n", "  train: &train\n")
    raw: dict[str, Any] = yaml.safe_load(TEXT)
    text = path.read_text().replace("  train.solver: [euler@4, rk4@2]", "  train: [{<<: *train, lr: 0.1}, {lr: 0.2}]")
    path.write_text(text)
    jobs = load_experiment(path).jobs.values()
    assert [c.train.lr for c in jobs] == [0.1] * 3 + [0.2] * 3
    assert {c.train.epochs for c in jobs} == {raw["job"]["train"]["epochs"]}


@pytest.mark.parametrize("content", ["", "\n# nothing yet\n", "- a\n- b\n", "digits"])
def test_a_file_that_is_no_experiment_is_refused(tmp_path, content):
    path = tmp_path / "x.yaml"
    path.write_text(content)
    assert refusal(path) == "an experiment file is a mapping with `question`, `job` and `evaluate_with`"


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes("question: né".encode("latin-1"))
    assert refusal(path) == "an experiment file is UTF-8 text, and this is not"


def test_the_text_of_an_experiment_may_have_any_letters(write):
    assert load_experiment(write("Does depth matter?", "Zählt φ(t)?")).question == "Zählt φ(t)?"


def test_a_missing_file_is_answered_with_the_one_meant(write, tmp_path):
    write()
    assert refusal(tmp_path / "smal.yaml") == f"no such experiment file. Did you mean `{tmp_path / 'small.yaml'}`?"
    assert "An example is `pipeline/experiments/digits.yaml`" in refusal(tmp_path / "no" / "qqq.yaml")


def test_a_folder_is_no_experiment(tmp_path):
    assert "cannot be read as an experiment file: Is a directory" in refusal(tmp_path)
