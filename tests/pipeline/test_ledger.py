"""The book of a search: what was chosen and decided is never chosen or decided again."""

from __future__ import annotations

import pickle
import shutil
import threading
from pathlib import Path

import pytest
from test_space import TRIALS, changed, search_of

from pipeline import records, trials
from pipeline.config import job_id, load_job
from pipeline.lease import LeaseLost
from pipeline.ledger import Ledger
from pipeline.paths import Paths
from pipeline.records import TrainingRecord, write_records
from pipeline.search_config import Exhausted
from pipeline.trials import front, last_row, read_events, rows_of, winners_of
from pipeline.tried import counts

GUIDED = TRIALS + "\n  algorithm: tpe"


def ledger_of(folder, text=None):
    return Ledger(search_of(folder, text or changed()), Paths(str(folder / "results")))


def test_a_trial_is_chosen_once_and_its_job_can_be_run_from_its_folder(tmp_path):
    ledger = ledger_of(tmp_path)
    trial, config = ledger.begin(0)
    assert trial.job == job_id(config)
    assert Path(ledger.paths.config(trial.job)).exists()
    again = ledger_of(tmp_path)
    assert again.begin(0) == (trial, config)
    assert len(read_events(ledger.search.id, ledger.paths)) == 1


def test_a_trial_whose_folder_was_deleted_is_begun_again(tmp_path):
    """As the message of a job that cannot be gone on with advises. One that took over another's weights cannot."""
    ledger = ledger_of(tmp_path)
    begun = [ledger.begin(number) for number in (0, 1)]
    ledger.change(1, "digits-another", 2, "took over another's weights")
    for trial, _ in begun:
        shutil.rmtree(Path(ledger.paths.config(trial.job)).parent)
    again = ledger_of(tmp_path)
    assert again.begin(0) == begun[0]
    assert load_job(ledger.paths.config(begun[0][0].job), begun[0][0].job) == begun[0][1]
    with pytest.raises(
        ValueError, match=r"digits-another/config.json: lacks, and trial 1 cannot .*; delete .*trials.jsonl"
    ):
        again.begin(1)


@pytest.mark.parametrize(("more", "guides"), [(TRIALS, False), (GUIDED, True)])
def test_former_trials_are_told_only_to_who_is_guided_by_them(tmp_path, monkeypatch, more, guides):
    """There may be ten thousand."""
    ledger = ledger_of(tmp_path, changed((TRIALS, more)))
    ledger.begin(0)
    told = []
    monkeypatch.setattr(ledger, "_told", told.append)
    ledger.begin(1)
    assert told == ([ledger.trials[0]] if guides else [])


def test_a_search_that_is_taken_up_reads_its_book_and_the_end_of_each_trial_once(tmp_path, monkeypatch):
    ledger = ledger_of(tmp_path)
    for number in (0, 1):
        ledger.begin(number)
        rows_to(ledger, number, 3)
    ledger.decide(0, "stopped", 3, (0.5,), "asha")
    ledger.decide(1, "finished", 3, (0.5,), "ok")
    read = []
    parse = records.parse_records

    def counted(cls, content, path):
        read.append((Path(path).name, content.count(b"\n")))
        return parse(cls, content, path)

    for module in (records, trials):
        monkeypatch.setattr(module, "parse_records", counted)
    again = ledger_of(tmp_path)
    name = Path(ledger.paths.training_so_far("x")).name
    assert sorted(read) == sorted([("trials.jsonl", 4), (name, 1), (name, 1)])
    assert again.results == {0: (0.5,), 1: (0.5,)}
    assert again.undecided == [2, 3, 4]


def test_the_last_row_is_that_of_all_rows(tmp_path):
    ledger = ledger_of(tmp_path)
    trial, _ = ledger.begin(0)
    assert last_row(trial.job, ledger.paths) is None
    for epochs in (1, 3):
        rows_to(ledger, 0, epochs)
        assert last_row(trial.job, ledger.paths) == rows_of(trial.job, ledger.paths)[-1]
    Path(ledger.paths.training_so_far(trial.job)).write_bytes(b"")
    assert last_row(trial.job, ledger.paths) is None


def test_decisions_stand_and_are_written_once(tmp_path):
    ledger = ledger_of(tmp_path)
    for number in range(4):
        ledger.begin(number)
    ledger.decide(0, "finished", 4, (0.9,), "ok")
    ledger.decide(1, "stopped", 1, (0.5,), "asha")
    ledger.decide(2, "failed", reason="RuntimeError: no")
    ledger.decide(1, "stopped", 1, (0.5,), "asha")
    rows_to(ledger, 1, 1)
    for book in (ledger, ledger_of(tmp_path)):
        assert book.undecided == [3, 4]
        assert counts(book.trials.values()) == {"finished": 1, "stopped": 1, "failed": 1, "running": 1}
        assert (book.trials[1].epoch, book.trials[1].reason) == (1, "asha")
    assert len(read_events(ledger.search.id, ledger.paths)) == 4 + 3


def test_what_was_decided_stands_whatever_a_scheduler_says_that_is_told_again(tmp_path):
    ledger = ledger_of(tmp_path)
    ledger.begin(0)
    ledger.decide(0, "finished", 4, (0.9,), "ok")
    ledger.decide(0, "stopped", 2, (0.5,), "asha")
    assert (ledger.trials[0].outcome, ledger.results[0]) == ("finished", (0.9,))
    assert ledger_of(tmp_path).trials[0].outcome == "finished"


def test_a_stop_whose_rows_were_lost_is_made_up_for(tmp_path):
    """The process was killed between the decision and its checkpoint."""
    ledger = ledger_of(tmp_path)
    for number in (0, 1):
        ledger.begin(number)
        rows_to(ledger, number, 2 - number)
        ledger.decide(number, "stopped", 2, (0.5,), "asha")
    again = ledger_of(tmp_path)
    assert again.undecided == [1, 2, 3, 4]
    again.decide(1, "stopped", 2, (0.5,), "asha")
    assert again.undecided == [2, 3, 4]
    assert len(read_events(ledger.search.id, ledger.paths)) == 4


def rows_to(ledger, number, epoch):
    """As a training writes them that came so far."""
    job = ledger.trials[number].job
    rows = [TrainingRecord(job, "c0de", e, e, 0.1, 1.0, 0.5, 1.0, 0.5, 4.0, "ok") for e in range(1, epoch + 1)]
    write_records(ledger.paths.training_so_far(job), rows)


def test_what_has_failed_is_tried_again_only_if_asked(tmp_path):
    ledger = ledger_of(tmp_path)
    ledger.begin(0)
    ledger.decide(0, "failed", reason="OSError: no space")
    assert ledger_of(tmp_path).undecided == [1, 2, 3, 4]
    again = Ledger(ledger.search, ledger.paths, retry_failed=True)
    assert again.undecided == [0, 1, 2, 3, 4]
    again.decide(0, "finished", 4, (0.9,))
    assert ledger_of(tmp_path).trials[0].outcome == "finished"


def test_one_whose_lease_is_lost_writes_no_more(tmp_path):
    def lost():
        raise LeaseLost("another")

    ledger = ledger_of(tmp_path)
    ledger.begin(0)
    before = ledger.file.read_bytes()
    ledger.check = lost
    with pytest.raises(LeaseLost):
        ledger.decide(0, "finished", 4, (0.9,))
    assert ledger.file.read_bytes() == before


def test_it_can_be_pickled_with_a_lease(tmp_path):
    """Tune does so with all that it is given."""
    ledger = ledger_of(tmp_path)
    ledger.check = threading.Lock().acquire
    with pytest.raises(TypeError):
        pickle.dumps(ledger.check)
    assert pickle.dumps(ledger)


def test_a_space_that_holds_no_more_ends_the_search(tmp_path):
    """More combinations than are counted beforehand, of which the conditions leave seven."""
    rates = "{choice: [" + ", ".join(f"{1 + k / 1000}" for k in range(180)) + "]}"
    more = "[model.basis.degree < model.basis.num_coefficients, train.lr < 1.0005]"
    old = "[model.basis.degree < model.basis.num_coefficients]"
    text = changed((old, more), ("{log_uniform: [1e-3, 1e-1]}", rates), (TRIALS, "num_trials: 9"))
    ledger = ledger_of(tmp_path, text)
    for number in range(7):
        ledger.begin(number)
    with pytest.raises(Exhausted):
        ledger.begin(7)
    assert ledger.asked == range(7)


def test_a_line_that_was_cut_off_never_happened(tmp_path):
    ledger = ledger_of(tmp_path)
    ledger.begin(0)
    whole = ledger.file.read_bytes()
    ledger.begin(1)
    ledger.file.write_bytes(ledger.file.read_bytes()[:-30])
    again = ledger_of(tmp_path)
    assert list(again.trials) == [0]
    assert again.file.read_bytes() == whole
    again.begin(1)
    assert list(ledger_of(tmp_path).trials) == [0, 1]


@pytest.mark.parametrize("algorithm", ["random", "tpe"])
def test_no_job_is_tried_twice_even_where_results_point_to_one(tmp_path, algorithm):
    text = changed(
        ("{log_uniform: [1e-3, 1e-1]}", "{choice: [0.1, 0.2]}"), (TRIALS, f"num_trials: 14\n  algorithm: {algorithm}")
    )
    ledger = ledger_of(tmp_path, text)
    for number in ledger.asked:
        trial, _ = ledger.begin(number)
        ledger.decide(number, "finished", 4, (float(trial.values["model.basis.degree"] == 0),))
    assert len({trial.job for trial in ledger.trials.values()}) == 14


def test_one_that_asks_for_more_trials_goes_on(tmp_path):
    ledger = ledger_of(tmp_path)
    for number in ledger.asked:
        ledger.begin(number)
        ledger.decide(number, "finished", 4, (0.9,))
    assert ledger_of(tmp_path, changed((TRIALS, "num_trials: 7"))).undecided == [5, 6]


@pytest.mark.parametrize(
    ("more", "at_once", "waits"),
    [
        (GUIDED, None, False),
        (GUIDED + "\n  synchronous: true\n  at_once: 2", 2, True),
        (GUIDED + "\n  synchronous: true", 4, False),
        (TRIALS + "\n  synchronous: true\n  scheduler: asha", 1, False),
        (TRIALS + "\n  scheduler: hyperband", None, False),
    ],
)
def test_a_synchronous_search_waits_where_the_order_of_results_would_matter(tmp_path, more, at_once, waits):
    """Trial 2 of a guided one that runs two at once may be chosen when 0 and 1 are decided, not before."""
    ledger = ledger_of(tmp_path, changed((TRIALS, more)))
    assert ledger.at_once == at_once
    for number in (0, 1):
        assert ledger.may_begin(number)
        ledger.begin(number)
    assert ledger.may_begin(2) is not waits
    ledger.decide(1, "finished", 4, (0.8,))
    assert ledger.may_begin(2) is not waits
    ledger.decide(0, "finished", 4, (0.8,))
    assert ledger.may_begin(2)


def test_the_order_of_results_changes_nothing_in_a_synchronous_search(tmp_path):
    text = changed((TRIALS, "num_trials: 16\n  algorithm: tpe\n  synchronous: true\n  at_once: 4"))
    chosen = []
    for turn, slow in enumerate((False, True)):
        folder = tmp_path / str(turn)
        folder.mkdir()
        ledger = ledger_of(folder, text)

        def end(number, ledger=ledger):
            values = ledger.trials[number].values
            ledger.decide(number, "finished", 4, (1 / (1 + values["model.basis.degree"]),))

        for first in range(0, 16, 4):
            for number in range(first, first + 4):
                assert ledger.may_begin(number)
                ledger.begin(number)
                if not slow:  # each has ended before the next begins
                    end(number)
            for number in reversed(range(first, first + 4)):
                end(number)
        chosen.append([trial.values for trial in ledger.trials.values()])
    assert chosen[0] == chosen[1]


def test_the_front_holds_what_is_not_outdone():
    """In both, more is better. Equal ones stay together."""
    assert front([(1, 5), (2, 4), (2, 3), (0, 6), (2, 4)]) == [0, 1, 3, 4]
    assert front([(3,), (1,), (3,)]) == [0, 2]


def test_a_search_that_came_to_nothing_has_no_winner(tmp_path):
    ledger = ledger_of(tmp_path)
    ledger.begin(0)
    ledger.decide(0, "failed", reason="x")
    with pytest.raises(ValueError, match="no trial of the search has come to a value; their reasons stand in "):
        winners_of(ledger.search, list(ledger.trials.values()), ledger.paths)
