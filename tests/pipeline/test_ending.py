"""When a search ends before its trials do."""

from __future__ import annotations

import pytest

from pipeline.ending import Ending, Spent, WithinBudget, spent_on
from pipeline.paths import Paths
from pipeline.records import AttemptRecord, TrialRecord, append_record
from pipeline.search_config import SearchBudget


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


NOTHING = Spent()


def ending(budget, past=NOTHING, running=2, gpus=0.0, asked=lambda: ""):
    clock = Clock()
    return Ending(asked, SearchBudget(**budget), past, lambda: running, gpus, 2, clock), clock


@pytest.mark.parametrize(
    ("budget", "gpus", "hours"),
    [
        ({"minutes": 30}, 0.0, 0.5),
        ({"core_hours": 2}, 0.0, 0.5),  # two trials, two cores each
        ({"gpu_hours": 1}, 0.25, 2.0),  # two quarters of a GPU
    ],
)
def test_a_budget_is_spent_when_it_is(budget, gpus, hours):
    end, clock = ending(budget, gpus=gpus)
    clock.now = 3600 * hours - 1
    assert end() == ""
    clock.now += 2
    assert end().startswith("its budget is spent: ")
    assert end.is_spent


def test_nothing_is_spent_while_nothing_runs_or_of_what_is_not_used():
    end, clock = ending({"minutes": 30}, running=0)
    clock.now = 1e6
    assert end() == ""
    end, clock = ending({"core_hours": 1}, gpus=1.0)
    clock.now = 1e6
    assert end() == ""


def test_what_former_runs_have_spent_counts():
    end, _ = ending({"core_hours": 1}, past=Spent(core_hours=1.5))
    assert end.is_spent is False
    assert end()
    assert end.is_spent


def test_who_asks_first_is_the_reason_and_it_stands():
    said = [""]
    end, clock = ending({"minutes": 1}, asked=lambda: said[0])
    said[0] = "SIGTERM"
    assert end() == "SIGTERM"
    said[0], clock.now = "", 1e6
    assert end() == "SIGTERM"
    assert not end.is_spent


def test_the_budget_of_the_experiment_is_looked_up_once_a_minute_and_what_cannot_be_read_ends_nothing():
    clock, answers, said = Clock(), iter(["", ValueError("half a row"), OSError("stale"), "it is spent"]), [""]

    def refusal():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    asked = WithinBudget(lambda: said[0], refusal, clock)
    for minute in range(3):
        for second in (0, 1, 59):
            clock.now = 60 * minute + second
            assert asked() == ""
    clock.now = 180
    assert asked() == "it is spent"
    clock.now = 1e6
    assert asked() == "it is spent"  # and is not looked up again
    said[0] = "SIGTERM"
    assert asked() == "SIGTERM"


def event(job, kind, at):
    return TrialRecord(0, job, kind, f"2026-01-01T{at}+00:00")


def test_the_past_is_read_off_the_attempts_of_trials(tmp_path):
    """Two at once for 60 s, half of it together: 90 s by the clock; a quarter of an hour on a quarter of a GPU, shared
    by three. What a sweep has trained before, and what was trained when all was decided, is not the search's."""
    paths = Paths(str(tmp_path))
    for job, start, seconds, device, share in (
        ("a", "09:00:00", 500.0, "cpu", 1),
        ("a", "10:00:00", 60.0, "cpu", 1),
        ("a", "10:30:00", 700.0, "cpu", 1),
        ("b", "10:00:30", 60.0, "cpu", 1),
        ("c", "11:00:00", 900.0, "cuda:0", 3),
    ):
        append_record(
            paths.attempts(job),
            AttemptRecord(
                *(job, "c0de", "x", "here", 1, device, 0, 1, f"2026-01-01T{start}+00:00", seconds, "finished", "ok"),
                share=share,
                threads=2,
                gpus=0.25,
            ),
        )
    events = [event(job, "begun", "09:59:59") for job in ("a", "b", "c", "never trained")]
    spent = spent_on([*events, event("a", "stopped", "10:01:00")], paths)
    assert spent.minutes == pytest.approx(1.5 + 15)
    assert spent.core_hours == pytest.approx(240 / 3600)
    assert spent.gpu_hours == pytest.approx(900 / 3 / 4 / 3600)
