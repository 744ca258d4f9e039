"""A search as a node of the DAG: its winners become jobs like any other."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from test_dag import planned
from workplace import ROOT

from pipeline.experiment import load_experiment
from pipeline.paths import Paths
from pipeline.run import Run
from pipeline.trials import read_events
from pipeline.winners import load_whole

sys.path.append(str(ROOT / "tests/pipeline"))
from searched import Searched

FILE = ROOT / "tests/workflow/search.yaml"
SEARCH = load_experiment(FILE).search


def test_the_search_stands_in_the_plan_and_its_winners_not_yet(workplace):
    code, output = workplace.snakemake("-n", "--quiet", "rules", experiment=FILE)
    assert code == 0, output
    counts = planned(output)
    assert (counts["search"], counts["train"], counts["evaluate"]) == (1, 1, 1)


def test_what_becomes_of_tables_is_planned_and_not_done(workplace):
    """Of a search that is asked for more, or whose result was deleted, the table is made anew; a dry run says so."""
    done = Searched(workplace.folder)
    done.try_all()
    done.end()
    run = Run.of({"results": done.paths.root}, [done.file])
    tables = ("table", "curves", "decision_table", "verdicts", "trajectory_table", "weight_paths")
    files = [getattr(done.paths, name)(run.name) for name in tables] + run.trial_tables + run.collected
    report = [done.paths.report(run.name), f"{done.paths.figures(run.name)}/.snakemake_timestamp"]
    seen = done.paths.data("digits")
    for file in (seen, *files, *report, done.paths.published(run.name)):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).touch()
    os.utime(seen, (1, 1))
    code, output = workplace.snakemake("-n", experiment=done.file)
    assert code == 0, output
    assert "Nothing to be done" in output, output
    text = done.file.read_text()
    found = Path(run.found)
    for change in ("more trials", "no result"):
        if change == "more trials":
            done.file.write_text(text.replace("num_trials: 24", "num_trials: 25"))
        else:
            done.file.write_text(text)
            found.unlink()
        code, output = workplace.snakemake("-n", "--quiet", "rules", experiment=done.file)
        assert code == 0, output
        assert [planned(output).get(rule) for rule in ("search", "collect", "report")] == [1, 1, 1], change
        assert Path(done.paths.table(run.name)).exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_in_the_search_the_same_command_ends_with_judged_winners(workplace):
    """And then there is nothing to be done."""
    paths = Paths(str(workplace.folder / "results"))
    process = workplace.start(experiment=FILE)
    end = time.monotonic() + 120
    while not any(event.event != "begun" for event in read_events(SEARCH.id, paths)):
        assert time.monotonic() < end, "no trial was decided"
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    decided = [event for event in read_events(SEARCH.id, paths) if event.event != "begun"]

    code, _ = workplace.snakemake("--unlock", experiment=FILE)
    assert code == 0
    code, output = workplace.snakemake("--rerun-incomplete", experiment=FILE)
    assert code == 0, output
    events = read_events(SEARCH.id, paths)
    assert len({event.trial for event in events}) == 5
    assert [event for event in events if event in decided] == decided
    whole = load_whole(FILE, paths)
    assert len(whole.jobs) == 1 + 2 * 2
    judged = workplace.files(f"evaluation-{whole.evaluate_with.id}.jsonl")
    assert len(judged) == len(whole.jobs)
    found = json.loads((workplace.folder / paths.found("search", SEARCH.result_id)).read_text())
    assert (found["trials"], found["failed"]) == (5, 0)
    table = (workplace.folder / paths.trial_table("search")).read_text()
    assert len(table.splitlines()) == 1 + 5
    report = (workplace.folder / paths.report("search")).read_text()
    assert "ASHA" in report
    code, output = workplace.snakemake(experiment=FILE)
    assert code == 0
    assert "Nothing to be done" in output, output

    more = workplace.folder / "search.yaml"  # the same search, asked for more
    more.write_text(FILE.read_text().replace("num_trials: 5", "num_trials: 6"))
    code, output = workplace.snakemake("-n", "--quiet", "rules", experiment=more)
    assert code == 0, output
    assert {rule: planned(output).get(rule) for rule in ("search", "collect", "report")} == dict.fromkeys(
        ("search", "collect", "report"), 1
    )
