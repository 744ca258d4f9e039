"""`collect` keeps every trial of a search, and refuses one that is not done."""

import contextlib
import dataclasses
import json
import logging
from pathlib import Path

import pandas as pd
import pytest
from searched import CODE, EPOCHS, FAILED, SEARCH, STEPS, Searched, epoch_of, evals_of
from test_collect import SMALL, change, load, make_results, run_stage
from test_report import read_again, whole_page

from pipeline import search as search_module
from pipeline.collect import collect
from pipeline.config import load_job
from pipeline.ledger import Ledger
from pipeline.paths import Paths
from pipeline.records import AttemptRecord, TrainingRecord, append_record, read_records, write_records
from pipeline.search_cost import estimate_whole
from pipeline.search_section import search_sentences
from pipeline.search_table import column_of
from pipeline.search_tags import tags_of_search, trials_by_job
from pipeline.training import RunSettings
from pipeline.trials import read_events, rows_of, trials_of, winners_of
from pipeline.tried import read_tried


@pytest.fixture
def searched(tmp_path) -> Searched:
    made = Searched(tmp_path)
    made.try_all()
    made.end()
    return made


def tables(searched) -> tuple[pd.DataFrame, pd.DataFrame]:
    found, name = collect(searched.whole, searched.paths), searched.experiment.name
    return found[searched.paths.trial_table(name)], found[searched.paths.trial_curves(name)]


def test_each_trial_is_a_row_with_what_was_chosen_and_what_it_came_to(searched):
    table, curves = tables(searched)
    events = trials_of(read_events(searched.search.id, searched.paths))
    assert list(table["trial"]) == [trial.number for trial in events] == list(range(24))
    for row, trial in zip(table.to_dict("records"), events):
        values, rows = trial.values, rows_of(trial.job, searched.paths)
        assert (row["job"], row["outcome"], row["reason"]) == (trial.job, trial.outcome, trial.reason)
        assert (row["begun"], row["ended"]) == (trial.begun, trial.ended)
        assert row["train.lr"] == values["train.lr"]
        assert row["model.basis.num_coefficients"] == str(values["model.basis.num_coefficients"])
        assert row["epochs"] == len(rows) == (curves["trial"] == trial.number).sum()
        assert row["seconds"] == 2 * len(rows)
        assert row["evals"] == evals_of(values) * STEPS * len(rows)
        goal = rows[-1].validation_accuracy if rows else None
        assert row["validation_accuracy"] == goal or (goal is None and pd.isna(row["validation_accuracy"]))
    assert table.set_index("trial").loc[FAILED, ["outcome", "reason"]].tolist() == ["failed", "RuntimeError: no"]


def test_winners_are_those_of_the_search_and_lie_on_the_front(searched):
    table, _ = tables(searched)
    found = json.loads(Path(searched.paths.found("found", searched.search.result_id)).read_text())
    jobs = {
        row["trial"]: [job for job, each in found["jobs"].items() if each["trial"] == row["trial"]]
        for row in found["jobs"].values()
    }
    won = table[table["winner"]].set_index("trial")["became"]
    assert {number: text.split() for number, text in won.items()} == jobs
    assert set(won.index) <= set(table.loc[table["front"], "trial"])


def test_the_front_is_of_whole_trials_that_none_outdoes(searched):
    table, _ = tables(searched)
    whole = table[table["outcome"] == "finished"]
    for row in table.to_dict("records"):
        better = whole[
            (whole["validation_accuracy"] >= row["validation_accuracy"]) & (whole["num_evals"] <= row["num_evals"])
        ]
        outdone = (
            (better["validation_accuracy"] > row["validation_accuracy"]) | (better["num_evals"] < row["num_evals"])
        ).any()
        assert row["front"] == (row["outcome"] == "finished" and not outdone)


def test_a_trial_that_was_stopped_is_not_on_the_front_though_it_looks_better(tmp_path):
    made = Searched(tmp_path)
    whole, stopped = made.begin(0), made.begin(1)
    made.finish(0, whole)
    made.stop(1, stopped)
    file = made.paths.training_so_far(stopped)
    rows = read_records(TrainingRecord, file)
    write_records(file, [dataclasses.replace(row, validation_accuracy=1.0, num_evals=1.0) for row in rows])
    made.end()
    assert list(tables(made)[0]["front"]) == [True, False]


def test_winners_are_jobs_of_the_tables(searched):
    """With each of their seeds, beside those of a sweep."""
    found = collect(searched.whole, searched.paths)[searched.paths.table("found")]
    assert set(found["job"]) == set(searched.whole.jobs)
    assert len(searched.whole.jobs) == 6
    assert set(found["seed"]) == {0, 1}


def test_a_search_that_is_not_done_is_refused_in_one_line(tmp_path):
    made = Searched(tmp_path)
    made.finish(0, made.begin(0))
    with pytest.raises(ValueError, match=r"search-\w+.json: no such file: the search of found is not done") as error:
        collect(made.whole, made.paths)
    assert "\n" not in str(error.value)
    end = run_stage("collect", made.file, "--results", made.paths.root)
    assert end.returncode != 0
    assert end.stderr.strip().splitlines()[-1].startswith("error: ")


def test_trials_of_different_code_are_refused_unless_told(searched):
    trial = trials_of(read_events(searched.search.id, searched.paths))[0]
    file = searched.paths.training_so_far(trial.job)
    assert trial.job not in searched.whole.jobs
    write_records(file, [dataclasses.replace(row, code="01d") for row in read_records(TrainingRecord, file)])
    with pytest.raises(ValueError, match=r"trial rows were made by different code: .*01d.*Search again"):
        collect(searched.whole, searched.paths)
    assert collect(searched.whole, searched.paths, mix_code=True)


def test_a_trial_that_has_won_and_is_not_there_is_said(searched):
    events = Path(searched.paths.trials(searched.search.id))
    events.write_text("".join(line for line in events.read_text().splitlines(True) if '"trial": 7,' not in line))
    with pytest.raises(ValueError, match="lacks the trial 7"):
        collect(searched.whole, searched.paths)


def test_a_choice_of_the_whole_job_has_a_column_of_its_own(tmp_path):
    over = "job: {choice: [{seed: 3}, {seed: 4}]}\n    train.lr:"
    made = Searched(tmp_path, SEARCH.replace("train.lr:", over))
    for number in range(4):
        made.finish(number, made.begin(number))
    made.end()
    table, _ = tables(made)
    assert set(table[column_of("job")]) == {"seed=3", "seed=4"}
    assert all(job.startswith("digits-") for job in table["job"])


def test_a_trial_that_took_over_weights_is_shown_as_what_it_became(tmp_path):
    made = Searched(tmp_path)
    first, second = made.begin(0), made.begin(1)
    made.trained(0, first, 2)
    made.event(0, second, "changed", epoch=2, reason="took over another's weights")
    made.finish(0, second)
    made.event(1, second, "finished", epoch=EPOCHS, reason="ok")
    made.end()
    row = tables(made)[0].set_index("trial").loc[0]
    assert (row["job"], row["changes"], row["epochs"]) == (second, 1, EPOCHS)
    assert row["seconds"] == 2 * 2 + 2 * EPOCHS


def test_without_a_search_there_are_no_such_tables(tmp_path):
    experiment, paths = load(SMALL, tmp_path), Paths(str(tmp_path / "results"))
    make_results(experiment, paths)
    assert not any("trial" in Path(path).name for path in collect(experiment, paths))


def train_in_full(made: Searched, number: int, job: str, year: int) -> None:
    """Not for the search, which is of 2026; in 1000 s."""
    values, _ = made.search.drawn(number)
    write_records(made.paths.training(job), [epoch_of(job, epoch, values) for epoch in range(1, EPOCHS + 1)])
    Path(made.paths.model(job)).write_bytes(b"weights")
    for empty in (made.paths.decisions(job), made.paths.weights(job)):
        write_records(empty, [])
    assert len(rows_of(job, made.paths)) == EPOCHS
    steps, times = (0, STEPS * EPOCHS), (f"{year}-01-01T00:00:00+00:00", 1000.0)
    attempt = AttemptRecord(job, CODE, "abc", "here", 7, "cpu", *steps, *times, "finished", "ok")
    append_record(made.paths.attempts(job), attempt)


@pytest.mark.parametrize("year", [2025, 2100])
def test_a_stopped_trial_is_what_it_was_when_it_was_stopped(tmp_path, year):
    """Whether a sweep has trained its job to the end before or after, which is dearer and better."""
    made = Searched(tmp_path)
    job = made.begin(0)
    made.stop(0, job)
    made.finish(1, made.begin(1))
    made.end()
    before = tables(made)
    train_in_full(made, 0, job, year)
    after, curves = tables(made)
    pd.testing.assert_frame_equal(after, before[0])
    pd.testing.assert_frame_equal(curves, before[1])
    assert after.loc[0, ["epochs", "seconds"]].tolist() == [2, 4.0]
    goals = made.search.settings.goals
    assert Ledger(made.search, made.paths).results[0] == tuple(after.loc[0, list(goals)])


def test_of_stopped_trials_the_best_where_each_was_stopped_has_won(tmp_path):
    """The other is better at its end, where a sweep has brought it."""
    made = Searched(tmp_path, SEARCH.replace("count: 3", "count: 1").replace(", num_evals]", "]"))
    for number in (0, 1):
        made.stop(number, made.begin(number))
    trials = trials_of(read_events(made.search.id, made.paths))
    (best,) = winners_of(made.search, trials, made.paths)
    other = next(trial for trial in trials if trial.number != best.number)
    rows = rows_of(other.job, made.paths)
    write_records(
        made.paths.training_so_far(other.job),
        [*rows, dataclasses.replace(rows[-1], epoch=3, step=3 * STEPS, validation_accuracy=0.999)],
    )
    assert winners_of(made.search, trials, made.paths) == [best]


def undecided(folder: Path) -> tuple[Searched, str, TrainingRecord]:
    """A budget has ended the search with one trial after two epochs. It has won, and was then trained in full. Returns
    its job, and its last row in the search."""
    made = Searched(folder, SEARCH.replace("num_trials: 24", "num_trials: 2"))
    job = made.begin(0)
    made.trained(0, job, 2)
    late = made.begin(1)  # no epoch of it was finished; a sweep is to train it
    made.end()
    train_in_full(made, 0, job, 2100)
    train_in_full(made, 1, late, 2100)
    return made, job, rows_of(job, made.paths)[1]


def test_a_winner_that_was_undecided_is_what_it_was_when_the_search_ended(tmp_path):
    made, job, last = undecided(tmp_path)
    table, curves = tables(made)
    row = table.loc[0].to_dict()
    assert (row["job"], row["outcome"], row["winner"], row["epochs"], row["seconds"]) == (job, "running", True, 2, 4.0)
    assert row["validation_accuracy"] == last.validation_accuracy
    assert row["evals"] == last.num_evals * 2 * STEPS
    assert list(curves["trial"]) == [0, 0]
    assert table.loc[1, ["epochs", "evals", "seconds"]].tolist() == [0, 0, 0]
    change(made.paths.training(job), TrainingRecord, status="nonfinite", validation_accuracy=None)
    found = " ".join(search_sentences(read_again(made.whole, made.paths)))
    assert f"in its search is {100 * last.validation_accuracy:.1f} % (trial 0, " in found


def test_a_search_that_is_begun_again_when_it_is_done_finds_what_it_found(tmp_path, monkeypatch):
    """Its winner has been trained in full since, and its folder was deleted then."""
    made, job, _ = undecided(tmp_path)
    file = Path(made.paths.found("found", made.search.result_id))
    found, config = file.read_bytes(), Path(made.paths.config(job))
    config.unlink()
    monkeypatch.setattr(search_module, "private_ray", lambda *args: contextlib.nullcontext())
    monkeypatch.setattr(search_module, "run_search", lambda *args: search_module.End("its budget is spent", True))
    search_module.search(made.experiment, Ledger(made.search, made.paths), RunSettings(), lambda: "", 1)
    assert file.read_bytes() == found
    assert load_job(config, job) == made.whole.jobs[job]


def test_a_file_that_does_not_say_how_far_undecided_trials_were_is_read(tmp_path):
    """Written before it did. Then what the winner came to since stands in its place, and may be nothing."""
    made, job, _ = undecided(tmp_path)
    file = Path(made.paths.found("found", made.search.result_id))
    found = json.loads(file.read_text())
    assert found.pop("undecided") == {"0": 2, "1": 0}
    assert found.pop("at")
    file.write_text(json.dumps(found))
    assert tables(made)[0].loc[0, "epochs"] == EPOCHS
    change(made.paths.training(job), TrainingRecord, status="nonfinite", validation_accuracy=None)
    results = read_again(made.whole, made.paths)
    assert "1 trial won and became 2 jobs" in (text := " ".join(search_sentences(results)))
    assert "What they came to in the search is not known any more." in text
    assert "What was searched" in whole_page(results)


@pytest.mark.parametrize("entry", [[3], {"0": "two"}, {"0": None}])
def test_a_broken_file_of_what_was_found_is_said(tmp_path, entry):
    made, *_ = undecided(tmp_path)
    file = Path(made.paths.found("found", made.search.result_id))
    file.write_text(json.dumps(json.loads(file.read_text()) | {"undecided": entry}))
    with pytest.raises(ValueError, match=r"not what a search has found .*; delete it to have it made again"):
        collect(made.whole, made.paths)


def test_a_broken_row_of_an_attempt_hides_what_one_job_took_and_nothing_else(searched, caplog):
    whole, _ = tables(searched)
    first = whole.loc[0, "job"]
    with open(searched.paths.attempts(first), "a") as file:
        file.write('{"job": "digi')
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            table, _ = tables(searched)
    assert table.loc[0, "seconds"] == 0 < whole.loc[0, "seconds"]
    pd.testing.assert_frame_equal(table.drop(columns="seconds"), whole.drop(columns="seconds"))
    assert list(table["seconds"][1:]) == list(whole["seconds"][1:])
    (message,) = caplog.messages
    assert f"{searched.paths.attempts(first)}:2: a broken row" in message


def test_trials_beyond_those_that_are_asked_for_do_not_count(tmp_path):
    """Six were decided; then three are asked for."""
    made = Searched(tmp_path)
    for number in (0, 1, 3, 4, 5):
        made.event(number, made.begin(number), "failed", reason="RuntimeError: no")
    few = Searched(tmp_path, SEARCH.replace("num_trials: 24", "num_trials: 3"))
    assert few.search.id == made.search.id
    search, _ = estimate_whole(few.experiment, few.paths)
    assert (search.num_jobs, search.num_done) == (3, 2)
    assert search.guessed.core > 0
    tags = tags_of_search(few.search, trials_by_job(few.search, few.paths))
    assert tags["search.failed"] == str(len(read_tried(few.search, few.paths))) == "2"
