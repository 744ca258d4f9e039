"""A search before, while and after it runs: its plan and cost, where it stands, what became of one of its jobs."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from places import row, touch
from searched import EPOCHS, FAILED, SEARCH, STEPS, Searched
from test_collect import run_stage

from pipeline import records, search_cost, trials
from pipeline.config import job_id
from pipeline.cost import is_spent, keep_budget, spent
from pipeline.counting import training_evals
from pipeline.experiment import Budget
from pipeline.guess import guessed_seconds
from pipeline.holder import Holder
from pipeline.past import DeviceSeconds
from pipeline.plan import describe
from pipeline.progress import standing, summary
from pipeline.records import TrainingRecord
from pipeline.search_cost import estimate_whole, first_trials
from pipeline.search_plan import combinations, describe_search
from pipeline.searching import searching
from pipeline.space import Domain
from pipeline.status import look, render
from pipeline.trials import read_events, trials_of
from pipeline.tried import is_done, option_text, read_tried
from pipeline.why import examine, find_job
from pipeline.why import render as render_why

GRID = SEARCH.replace("integer: [0, 3]", "grid: [0, 1, 2, 3]").replace("choice:", "grid:")
GRID = re.sub(r"train.lr: .*", "train.lr: {grid: [1e-2, 1e-3]}", GRID)
GRID = GRID.replace("num_trials: 24", "algorithm: grid").replace("name: asha, grace_epochs: 2", "name: none")
WITH_SWEEP = SEARCH.replace("evaluate_with", "sweep: {seed: [0, 1]}\nevaluate_with")


@pytest.fixture
def fresh(tmp_path) -> Searched:
    return Searched(tmp_path)


@pytest.fixture
def done(tmp_path) -> Searched:
    made = Searched(tmp_path)
    made.try_all()
    made.end()
    return made


def test_the_plan_shows_the_space_and_what_is_tried_first(fresh):
    text = describe(fresh.experiment)
    for path in fresh.search.space.domains:
        assert path in text
    for part in ("0.001 to 0.1, log-uniform", "2, 4, 8", "0 to 3, whole", "degree < model.basis.num_coefficients"):
        assert part in text
    for part in ("24 trials", "random search (seed 0), ASHA", "the 3 best", "with 2 seeds each (0, 1)"):
        assert part in text
    lines = text.splitlines()
    for number in range(5):
        values, config = fresh.search.drawn(number)
        at = next(i for i, line in enumerate(lines) if line.strip() == job_id(config))
        assert lines[at - 1].split()[0] == f"{training_evals(config):,}"
        assert f"train.lr = {values['train.lr']:.4g}" in lines[at - 1]
    evals = [training_evals(fresh.search.drawn(n)[1]) for n in range(24)]
    assert f"{min(evals):,} to {max(evals):,} field evaluations" in text
    assert "Each winner is judged on the test split with 4 solvers" in lines[-1]


def test_the_plan_of_a_sweep_and_a_search_shows_both(tmp_path):
    made = Searched(tmp_path, WITH_SWEEP)
    text = describe(made.experiment)
    assert "2 jobs, " in text
    assert "A search of 24 trials" in text
    assert all(job in text for job in made.experiment.jobs)


def test_combinations_are_counted_by_the_conditions(tmp_path):
    """Degrees 0 and 1 go with 2 coefficients, all four with 4 and 8: 10 of 12, each with 4 solvers and 2 rates."""
    made = Searched(tmp_path, GRID)
    assert combinations(made.search) == "96, of which the conditions leave 80"
    assert made.search.num_trials == 80
    assert "80 trials" in describe_search(made.search)[0]
    assert [config for _, config in first_trials(made.search, 200)] == [config for _, config in made.search.grid()]
    unbound = dataclasses.replace(made.search.space, conditions=())
    assert combinations(dataclasses.replace(made.search, space=unbound)) == "96"


def test_values_are_said_in_few_words_and_never_two_alike():
    model = Domain(
        "choice", ({"family": "gode", "basis": {"degree": 1, "num_coefficients": 3}}, {"family": "neural_ode"})
    )
    assert [option_text(model, option) for option in model.options] == [
        "gode degree=1 num_coefficients=3",
        "neural_ode",
    ]
    clip = Domain("choice", (None, 1, 2.5, True))
    assert [option_text(clip, option) for option in clip.options] == ["none", "1", "2.5", "true"]
    assert option_text(Domain("log_uniform", (1e-3, 1.0)), 0.00123456) == "0.001235"
    alike = Domain("choice", ("1", 1))
    assert [option_text(alike, option) for option in alike.options] == ['"1"', "1"]


def test_what_a_search_costs_is_guessed_before_it_runs(fresh):
    search, winners = estimate_whole(fresh.experiment, fresh.paths)
    assert (search.rule, search.num_jobs, search.num_done) == ("search", 24, 0)
    assert (winners.rule, winners.num_jobs) == ("winners", 6)
    assert search.known == winners.known == DeviceSeconds()
    assert search.guessed.core > winners.guessed.core > 0


def test_trials_that_are_decided_have_not_to_be_paid_again(fresh):
    """Nothing was trained, so all is a guess: the sum over those that are left."""
    each = [guessed_seconds(fresh.search.drawn(number)[1]) or 0.0 for number in range(24)]
    for number in range(3):
        fresh.event(number, fresh.begin(number), "failed", reason="RuntimeError: no")
        cost = estimate_whole(fresh.experiment, fresh.paths)[0]
        assert (cost.num_done, cost.past) == (number + 1, frozenset())
        assert cost.guessed.core == pytest.approx(sum(each[number + 1 :]))
    fresh.begin(3)  # not decided
    assert estimate_whole(fresh.experiment, fresh.paths)[0].guessed.core == pytest.approx(sum(each[3:]))


def test_of_many_trials_the_first_stand_for_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(search_cost, "MOST", 8)
    made = Searched(tmp_path)
    each = [guessed_seconds(made.search.drawn(number)[1]) or 0.0 for number in range(8)]
    assert estimate_whole(made.experiment, made.paths)[0].guessed.core == pytest.approx(3 * sum(each))


def test_those_behind_the_ones_that_are_looked_at_are_not_free_when_these_are_decided(tmp_path, monkeypatch):
    """All eight that are looked at are trained and decided; sixteen are still to come."""
    monkeypatch.setattr(search_cost, "MOST", 8)
    made = Searched(tmp_path, SEARCH.replace("name: asha, grace_epochs: 2", "name: none"))
    for number in range(8):
        made.finish(number, made.begin(number))
    search = estimate_whole(made.experiment, made.paths)[0]
    assert (search.num_jobs, search.num_done) == (24, 8)
    assert search.known.core + search.guessed.core > 0
    for number in range(8, 24):
        made.finish(number, made.begin(number))
    search = estimate_whole(made.experiment, made.paths)[0]
    assert search.known == search.guessed == DeviceSeconds()
    assert search.num_unknown == 0


def test_a_search_without_surprises_is_known_by_its_past(tmp_path):
    """Nothing is stopped, and all is known beforehand: then it is no guess what like jobs have cost."""
    plain = Searched(tmp_path, SEARCH.replace("name: asha, grace_epochs: 2", "name: none"))
    for number in range(12):
        plain.finish(number, plain.begin(number))
    search = estimate_whole(plain.experiment, plain.paths)[0]
    assert search.known.core > 0
    told = Searched(tmp_path, SEARCH)
    assert estimate_whole(told.experiment, told.paths)[0].known == DeviceSeconds()


def test_the_work_of_a_sweep_is_no_cost_of_a_search(fresh):
    """One trial is trained already, for something else; it is not yet a trial."""
    before = estimate_whole(fresh.experiment, fresh.paths)[0].guessed.core
    touch(*fresh.paths.trained(job_id(fresh.search.drawn(3)[1])))
    assert estimate_whole(fresh.experiment, fresh.paths)[0].guessed.core < before


def test_when_the_search_is_done_its_winners_are_jobs_like_the_others(done):
    train, evaluate = estimate_whole(done.experiment, done.paths)
    assert (train.rule, train.num_jobs, train.num_done) == ("train", 6, 6)
    assert (evaluate.rule, evaluate.num_jobs) == ("evaluate", 6)


def test_trials_are_spent_and_a_budget_counts_them(done):
    trained = sum(each.epoch for each in read_tried(done.search, done.paths))
    assert spent(done.whole, done.paths) == DeviceSeconds(core=2.0 * trained)
    budget = Budget(core_hours=1e-4)
    limited = dataclasses.replace(done.experiment, budget=budget)
    assert not is_spent(limited, done.paths)  # nothing is left to train
    Path(done.paths.found("found", done.search.result_id)).unlink()
    assert is_spent(limited, done.paths)
    rules = estimate_whole(limited, done.paths)
    with pytest.raises(ValueError, match=r"budget of 0\.0001 core-hours is spent"):
        keep_budget(budget, spent(limited, done.paths), rules, "r", "x.yaml")


def test_where_a_search_stands_is_told_by_the_last_rows_alone(done, monkeypatch):
    """There may be thousands of trials, and of rows of each."""
    read = []

    def counted(cls, content, path, parse=records.parse_records):
        rows = parse(cls, content, path)
        read.append(len(rows) if cls is TrainingRecord else 0)
        return rows

    for module in (records, trials):
        monkeypatch.setattr(module, "parse_records", counted)
    assert "Best: " in str(searching(done.whole, done.paths))
    assert sum(read) <= done.search.num_trials
    assert max(read) == 1


@pytest.mark.usefixtures("no_slurm")
def test_status_says_where_the_search_stands(fresh):
    assert render(*look(fresh.experiment, fresh.paths))[0] == (
        "found: no jobs before the search is done. Used: nothing."
    )
    assert render(*look(fresh.experiment, fresh.paths))[1] == "Search: none begun, of 24 trials asked for."
    fresh.finish(0, fresh.begin(0))
    fresh.stop(1, fresh.begin(1))
    fresh.event(2, fresh.begin(2), "failed", reason="RuntimeError: no")
    running = fresh.begin(3)
    hold(fresh, running, epoch=2)
    lines = render(*look(fresh.experiment, fresh.paths))
    assert lines[1].startswith("Search: 1 finished, 1 stopped, 1 failed, 1 not decided, of 24 trials asked for.")
    best = max(read_tried(fresh.search, fresh.paths), key=lambda each: each.value("validation_accuracy") or 0)
    value = best.value("validation_accuracy")
    assert (
        f"Best so far: validation accuracy {100 * value:.1f} % after epoch {best.epoch} (trial {best.number})."
        in lines[1]
    )
    (row,) = [line for line in lines if running in line]
    assert row.split()[:3] == ["training", running, f"2/{EPOCHS}"]
    assert "trial 3; " in row


def hold(made: Searched, job: str, epoch: int) -> None:
    facts = {"host": "node2", "pid": 12, "born": "another-boot pid:[1] 1", "started": "2026-01-02T03:00:00+00:00"}
    facts |= {"code": "c", "device": "cpu", "threads": 1, "share": 1, "slurm_job": "", "campaign": "", "token": "t"}
    holder = Holder(**facts, from_step=0, step=STEPS * epoch, epoch=epoch, seconds=3.0)
    path = Path(made.paths.lease(job))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(holder)))


@pytest.mark.usefixtures("no_slurm")
def test_all_is_done_when_the_winners_are_judged_and_not_before(done):
    found = standing(done.experiment, done.paths)
    assert "Done: all trials." in str(found.search)
    assert found.is_done
    assert [place.job for place in found.places] == list(done.whole.jobs)
    Path(done.paths.found("found", done.search.result_id)).unlink()
    assert not standing(done.experiment, done.paths).is_done
    assert not is_done(done.experiment, done.paths)


@pytest.mark.usefixtures("no_slurm")
def test_progress_grows_with_every_trial_and_with_the_winners(fresh):
    seen = [standing(fresh.experiment, fresh.paths).progress]
    for number in range(24):
        (fresh.stop if number % 2 else fresh.finish)(number, fresh.begin(number))
        seen.append(standing(fresh.experiment, fresh.paths).progress)
    fresh.end()
    seen.append(standing(fresh.experiment, fresh.paths).progress)
    assert seen == sorted(set(seen))


@pytest.mark.usefixtures("no_slurm")
def test_what_is_used_counts_each_trial_once(done):
    trained = sum(each.epoch for each in read_tried(done.search, done.paths))
    assert standing(done.experiment, done.paths).spent == DeviceSeconds(core=2.0 * trained)
    assert summary(standing(done.experiment, done.paths)).endswith("Done: all trials.")


@pytest.mark.usefixtures("no_slurm")
def test_what_a_trial_trained_before_it_took_over_weights_is_used_too(tmp_path):
    """Whatever it became; and each job once, though two trials were it. All as the budget counts it."""
    made = Searched(tmp_path, WITH_SWEEP)
    left, taken, both = made.begin(0), made.begin(1), made.begin(2)
    for number, (job, epochs) in enumerate([(left, 1), (taken, EPOCHS), (both, 2)]):
        made.trained(number, job, epochs)
    winner = next(iter(made.experiment.jobs))
    made.trained(0, winner, 3)
    made.event(0, winner, "changed", epoch=1, reason="took over another's weights")
    made.event(1, both, "changed", epoch=2, reason="took over another's weights")
    beyond = made.begin(24)  # of a search that asked for more
    made.trained(24, beyond, 1)
    found = standing(made.experiment, made.paths)
    assert found.search is not None
    assert found.search.spent == DeviceSeconds(core=2.0 * (1 + EPOCHS + 2 + 1))
    assert found.spent == spent(made.experiment, made.paths) == DeviceSeconds(core=2.0 * (1 + EPOCHS + 2 + 1 + 3))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"state": "PENDING", "reason": "Priority"}, " Its SLURM job 7 waits: Priority."),
        ({"name": "gode-found_uuid"}, " Its SLURM job 7 runs on node1."),
        ({"name": "gode-found-b_uuid"}, ""),  # another experiment's of this folder
        ({"state": "TIMEOUT"}, ""),
        ({"comment": "rule_fleet"}, ""),
    ],
)
def test_a_search_says_which_slurm_job_it_is(fresh, fields, said):
    queue = [row("search", "", **fields)]
    line = "Search: none begun, of 24 trials asked for."
    found = standing(fresh.experiment, fresh.paths, queue)
    assert render(found, "")[1] == line + said
    assert summary(found).endswith(line + said)


def test_of_a_search_that_is_done_no_slurm_job_is_said(done):
    assert str(standing(done.experiment, done.paths, [row("search", "")]).search).endswith("Done: all trials.")


def why(made: Searched, job: str) -> list[str]:
    return render_why(examine(job, made.paths, [made.experiment], str(made.folder / "none")))


@pytest.mark.usefixtures("no_slurm")
def test_why_says_which_trial_a_job_was_and_who_stopped_it(done):
    trials = trials_of(read_events(done.search.id, done.paths))
    name = f"of the search {done.search.id} (found)"
    stopped, failed = next(t for t in trials if t.outcome == "stopped"), trials[FAILED]
    lines = why(done, stopped.job)
    assert f"It was trial {stopped.number} {name}: stopped by ASHA after epoch 2." in lines
    assert "Failure of the newest start: none (the search has stopped it)" in lines
    assert f"It was trial {FAILED} {name}: failed after epoch 0 (RuntimeError: no)." in why(done, failed.job)
    other = next(job for job, config in done.whole.jobs.items() if config.seed == 1)
    assert not any("It was trial" in line for line in why(done, other))


@pytest.mark.usefixtures("no_slurm")
def test_why_says_where_a_trial_went_on(fresh):
    first = fresh.begin(0)
    second = fresh.begin(1)
    fresh.event(0, second, "changed", epoch=2, reason="took over another's weights")
    assert f"It was trial 0 of the search {fresh.search.id} (found), which went on with {second}." in why(fresh, first)
    assert find_job(first, {first, second}) == first


def test_a_broken_trial_file_of_another_search_tells_nothing(done):
    other = Path(done.paths.trials("another"))
    other.parent.mkdir(parents=True)
    other.write_text("{}\n")
    job = trials_of(read_events(done.search.id, done.paths))[0].job
    assert sum("It was trial" in line for line in why(done, job)) == 1


def test_the_command_prints_the_plan_and_the_cost(fresh):
    end = run_stage("plan", fresh.file, "--results", fresh.paths.root)
    assert end.returncode == 0, end.stderr
    assert "A search of 24 trials over" in end.stdout
    assert re.search(r"  search +~.* core-.*24 trials, 0 done; a guess", end.stdout)
    assert re.search(r"  winners +~.*6 jobs, 0 done", end.stdout)
