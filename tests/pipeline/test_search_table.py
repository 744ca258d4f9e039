"""`collect` keeps every trial of a search, and refuses one that is not done."""

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest
from searched import EPOCHS, FAILED, SEARCH, STEPS, Searched, evals_of
from test_collect import SMALL, load, make_results, run_stage

from pipeline.collect import collect
from pipeline.paths import Paths
from pipeline.records import TrainingRecord, read_records, write_records
from pipeline.search_table import column_of
from pipeline.trials import read_events, rows_of, trials_of


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
