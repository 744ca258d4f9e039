"""A search through Snakemake's profile on two nodes, one of which crashes: it ends with all of its trials. The whole
way, from an experiment file to the report, each training and each judgement a SLURM job."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from campaign import ROOT, SITE, Campaign, Victim, now
from daemons import wait_until
from test_ray import assert_only_a_lost_disk_holds_more, forget

from pipeline.experiment import Experiment
from pipeline.holder import Holder, read_holder
from pipeline.records import TrialRecord
from pipeline.search_config import Search
from pipeline.trials import Trial, read_events, rows_of, trials_of
from pipeline.winners import load_whole

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

TRIALS, EPOCHS = 6, 240
CHANGES = {
    "epochs: 3": f"epochs: {EPOCHS}",
    "{name: asha, reduction: 2}": f"{{name: asha, reduction: 2, grace_epochs: {EPOCHS // 2}}}",
    "num_trials: 5": f"num_trials: {TRIALS}",
    "count: 2, seeds: [0, 1]": "count: 1, seeds: [0]",  # its job is a trial's, which needs no training any more
}
ON_TWO_NODES = f"""{SITE}
search: {{minutes: 10, memory_mb: 2400, cpus: 2, nodes: 2}}
most_memory_mb: 2900 # of the nodes here
"""


def experiment() -> str:
    text = (ROOT / "tests/workflow/search.yaml").read_text()
    for old, new in CHANGES.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


class Searched:
    """What a search leaves in files, while it runs and afterwards."""

    def __init__(self, campaign: Campaign):
        self.campaign, self.file = campaign, campaign.folder / "x.yaml"

    @property
    def whole(self) -> Experiment:
        return load_whole(self.file, self.campaign.paths)

    @property
    def search(self) -> Search:
        search = self.whole.search
        assert search is not None
        return search

    @property
    def found(self) -> Path:
        return Path(self.campaign.paths.found(self.whole.name, self.search.result_id))

    @property
    def driver(self) -> Holder | None:
        return read_holder(self.campaign.paths.search_lease(self.search.id))

    @property
    def events(self) -> list[TrialRecord]:
        return read_events(self.search.id, self.campaign.paths)

    @property
    def trials(self) -> list[Trial]:
        return trials_of(self.events)

    @property
    def decided(self) -> list[TrialRecord]:
        return [event for event in self.events if event.event != "begun"]

    def under_way(self) -> dict[str, list[Victim]]:
        """Trials that are trained at this moment, with a checkpoint and a good part before them, by node."""
        found: dict[str, list[Victim]] = {}
        for trial in self.trials:
            holder = self.trains(trial.job) if trial.outcome == "running" else None
            if holder is not None and 0 < len(rows_of(trial.job, self.campaign.paths)) < EPOCHS * 9 // 10:
                found.setdefault(holder.host, []).append(Victim(trial.job, holder, now()))
        return found

    def trains(self, job: str) -> Holder | None:
        """Who holds it and knows where it begins, whether or not he has shown a further sign of life."""
        holder = read_holder(self.campaign.paths.lease(job))
        begun = holder is not None and holder.from_step is not None
        return holder if begun and not Path(self.campaign.paths.model(job)).exists() else None

    def models(self) -> dict[str, bytes]:
        """Of the trials that are finished."""
        finished = [trial.job for trial in self.trials if trial.outcome == "finished"]
        return {job: Path(self.campaign.paths.model(job)).read_bytes() for job in finished}


@dataclass(frozen=True)
class Loss:
    """A search that has ended, and what was so when it lost a node."""

    searched: Searched
    driver: Holder
    lost: list[Victim]
    decided: list[TrialRecord]
    models: dict[str, bytes]


@pytest.fixture(scope="module")
def loss(cluster, tmp_path_factory):
    cluster.tidy()
    last = max((int(row.id) for row in cluster.squeue()), default=0)
    for job in range(last + 1, last + 30):
        forget(job)
    campaign = Campaign(tmp_path_factory.mktemp("search"), experiment(), cluster.environment, ON_TWO_NODES)
    searched, began = Searched(campaign), time.monotonic()
    with campaign.started(*campaign.snakemake("--workflow-profile", "cluster/slurm", checkpoint_seconds=1)) as process:
        running: dict[str, list[Victim]] = {}

        def in_the_middle() -> bool:
            assert process.poll() is None, f"all is over\n{campaign.output.read_text()[-3000:]}"
            running.clear()
            running.update(searched.under_way())
            return bool(searched.decided) and len(running) == 2

        wait_until(in_the_middle, "a trial is decided, others run on two nodes", 240, campaign.output)
        driver, decided, models = searched.driver, searched.decided, searched.models()
        assert driver is not None
        (second,) = running.keys() - {driver.host}
        cluster.crash(second)
        lost = [it for it in running[second] if searched.trains(it.job) is not None]  # now it cannot change
        print(f"\na search: its second node crashes after {time.monotonic() - began:.0f} s", end="")
        wait_until(searched.found.exists, "the search has ended", 240, campaign.output)
        print(f", it ends after {time.monotonic() - began:.0f} s", end="")
        campaign.finish(process, 400)
        print(f", all is done after {time.monotonic() - began:.0f} s")
    return Loss(searched, driver, lost, decided, models)


def test_the_search_ends_with_as_many_trials_as_asked_and_each_is_decided_once(loss):
    found = json.loads(loss.searched.found.read_text())
    assert (found["trials"], found["failed"], found["ended"]) == (TRIALS, 0, "all trials are decided")
    assert [trial.number for trial in loss.searched.trials] == list(range(TRIALS))
    assert sorted(event.trial for event in loss.searched.decided) == list(range(TRIALS))


def test_what_was_decided_and_finished_before_stands(loss):
    assert loss.decided
    assert loss.searched.decided[: len(loss.decided)] == loss.decided
    models = loss.searched.models()
    assert {job: models[job] for job in loss.models} == loss.models


def test_the_trials_of_the_lost_node_go_on_from_their_checkpoints_on_the_other(loss):
    assert loss.lost
    for victim in loss.lost:
        hit, successor = loss.searched.campaign.hit_and_next(victim)
        assert (hit.outcome, successor.host) == ("killed", loss.driver.host)
        assert successor.from_step > 0
        back = loss.searched.campaign.back_after(victim)
        print(f"\na node of the search lost: its trial went on after {back:.0f} s", end="")


def test_no_step_of_a_trial_is_made_twice(loss):
    for trial in loss.searched.trials:
        rows = rows_of(trial.job, loss.searched.campaign.paths)
        assert loss.searched.campaign.steps_in_a_chain(trial.job) == rows[-1].step
        assert [row.epoch for row in rows] == list(range(1, trial.epoch + 1))


def test_the_winner_is_judged_like_any_other_job_and_not_trained_again(loss):
    whole, paths = loss.searched.whole, loss.searched.campaign.paths
    (winner,) = whole.jobs.keys() & {trial.job for trial in loss.searched.trials}
    assert len(whole.jobs) == 1 + 1  # the sweep's, and the winner
    for job in whole.jobs:
        assert Path(paths.evaluation(job, whole.evaluate_with.id)).exists()
    assert {it.slurm_job for it in loss.searched.campaign.attempts(winner)} == {loss.driver.slurm_job}
    assert len(Path(paths.trial_table(whole.name)).read_text().splitlines()) == 1 + TRIALS


def test_the_sweeps_job_and_the_winner_were_slurm_jobs_and_a_report_is_the_end(cluster, loss):
    whole, paths = loss.searched.whole, loss.searched.campaign.paths
    (swept,) = whole.jobs.keys() - {trial.job for trial in loss.searched.trials}
    completed = {row.comment for row in cluster.squeue() if row.state == "COMPLETED"}
    assert {f"rule_train_wildcards_{swept}", *(f"rule_evaluate_wildcards_{job}" for job in whole.jobs)} <= completed
    assert "Does the whole way work with a search, too?" in Path(paths.report(whole.name)).read_text()


def test_the_search_was_one_slurm_job_that_leaves_nothing_behind(cluster, loss):
    """It ran once, to its end, in spite of the node."""
    job, folder = loss.driver.slurm_job, loss.searched.campaign.folder
    assert cluster.job(job).state == "COMPLETED"
    assert {victim.slurm_job for victim in loss.lost} == {job}
    assert not cluster.exec(loss.driver.host, "pgrep", "-af", "ray::|raylet|gcs_server").stdout
    assert_only_a_lost_disk_holds_more(job, folder)
    assert not Path(loss.searched.campaign.paths.search_scratch(loss.searched.search.id)).exists()
