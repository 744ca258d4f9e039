"""What happens to nodes, at once and in one run: trainings go on elsewhere, and never have two writers.

Three nodes have one training each. While a node is cut off, or its slurmd is dead, the training on it lives on: SLURM
starts its job again on the fourth node, beside it, on the same files.
"""

import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import pytest
from campaign import ONE_SEED, SITE, Campaign, Victim, begin, now
from daemons import wait_until

from pipeline.lease import BEAT, Holder

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

PATIENT = SITE.replace("train: {minutes: 2,", "train: {minutes: 5,")


@dataclass
class Storm:
    """A run, what was hit by which fault, and who took over from a training that was cut off and asleep."""

    campaign: Campaign
    victims: dict[str, Victim]
    successor: Holder


@pytest.fixture(scope="module")
def storm(cluster, tmp_path_factory):
    cluster.tidy()
    campaign = Campaign(tmp_path_factory.mktemp("nodes"), ONE_SEED, cluster.environment, PATIENT)
    campaign.has_seen_its_data()
    with campaign.started(*campaign.snakemake("--workflow-profile", "cluster/slurm", "--until", "train")) as process:
        at_work = campaign.victims(3, process)
        assert len({victim.node for victim in at_work}) == 3, at_work
        headless, lost, cut_off = at_work
        cluster.exec(cut_off.node, "kill", "-STOP", cut_off.holder.pid)
        cluster.kill_slurmd(headless.node)
        cluster.crash(lost.node)
        cluster.cut(cut_off.node)
        with slowed(cluster, campaign, headless):
            for victim in at_work:  # SLURM notices, and starts each on the fourth node; two beside copies that live
                away = partial(runs_elsewhere, cluster, victim, {each.node for each in at_work})
                wait_until(away, f"{victim} runs elsewhere", 120, campaign.output)
        cluster.start(lost.node)
        cluster.start(headless.node)  # which ends what it finds there
        successor = campaign.wait_for_successor(cut_off)
        preempted = Victim(cut_off.job, successor, now())
        with slowed(cluster, campaign, preempted):
            cluster.exec(cut_off.node, "kill", "-CONT", cut_off.holder.pid)
            wait_until(
                lambda: goes_on(campaign, cut_off.job, successor), "he who took over goes on", 30, campaign.output
            )
            cluster.heal(cut_off.node)
            for victim in (headless, cut_off):  # a job that comes back to a node that still has it has the node drained
                over = partial(is_over, cluster, victim)
                wait_until(over, f"{victim.node} has ended what was begun there", 60, campaign.output)
            urgent = cluster.submit("true", "--partition=main", f"--nodelist={preempted.node}", "--exclusive")
            cluster.wait_for_job(urgent, "RUNNING", "COMPLETED", "COMPLETING")
        cluster.wait_for_job(urgent, "COMPLETED", "COMPLETING")
        campaign.finish(process, 400)
    victims = {"slurmd killed": headless, "crash": lost, "cut off, asleep": cut_off, "preempted": preempted}
    return Storm(campaign, victims, successor)


@contextmanager
def slowed(cluster, campaign, victim):
    """The training gets a tenth of its time, and still shows that it lives. At full speed it may end before SLURM
    misses the node, or takes it away; then its job is over, and there is nothing to be taken away."""
    pid, while_there = victim.holder.pid, campaign.folder / "slowed"
    while_there.touch()
    loop = (
        f"while [ -e {while_there} ] && kill -STOP {pid}; do sleep 0.9; kill -CONT {pid}; sleep 0.1; done 2>/dev/null"
    )
    with subprocess.Popen([*cluster.nodes[victim.node].inside(), "sh", "-c", loop]) as process:
        try:
            yield
        finally:
            while_there.unlink()
            process.wait(20)


def runs_elsewhere(cluster, victim, hit):
    """On a node that was not hit: for a moment SLURM may take another one for sound."""
    row = cluster.job(victim.slurm_job)
    return row.state in ("RUNNING", "COMPLETED") and row.node not in hit


def is_over(cluster, victim):
    """Nothing of its SLURM job is left on the node where it was hit."""
    return cluster.exec(victim.node, "pgrep", "-f", rf"slurmstepd: \[{victim.slurm_job}\.").returncode == 1


def goes_on(campaign, job, successor):
    """He has shown a further sign of life, or has finished; nobody else holds the job."""
    holder = campaign.training(job)
    if holder is None:
        return any(attempt.outcome == "finished" for attempt in campaign.attempts(job))
    assert holder.token == successor.token
    return holder.beat > successor.beat


def test_the_training_of_a_node_that_crashed_goes_on_elsewhere(storm):
    victim = storm.victims["crash"]
    hit, successor = storm.campaign.hit_and_next(victim)
    assert hit.outcome == "killed"
    assert successor.host != victim.node
    print(f"\ncrash: trained again after {storm.campaign.back_after(victim):.0f} s")


def test_a_training_that_was_preempted_goes_on_from_its_checkpoint(storm):
    victim = storm.victims["preempted"]
    hit, *_ = storm.campaign.hit_and_next(victim)
    assert (hit.outcome, hit.reason) == ("interrupted", "SIGTERM")
    assert hit.to_step > hit.from_step
    print(f"\npreempted: trained again after {storm.campaign.back_after(victim):.0f} s")


def test_a_training_without_slurmd_lives_on_until_the_node_is_mended(storm):
    """The copy that SLURM starts elsewhere waits for it. The new slurmd ends it, without a word."""
    victim = storm.victims["slurmd killed"]
    hit, *_ = storm.campaign.hit_and_next(victim)
    assert hit.outcome in ("finished", "killed")
    assert begin(hit) + timedelta(seconds=hit.seconds) > victim.at + timedelta(seconds=BEAT)
    back = storm.campaign.back_after(victim)
    print(f"\nslurmd killed: {'never stopped' if back is None else f'trained again after {back:.0f} s'}")


def test_a_training_that_was_cut_off_and_wakes_writes_no_more(storm):
    victim = storm.victims["cut off, asleep"]
    hit, *_ = storm.campaign.hit_and_next(victim)
    assert hit.outcome == "killed"  # as he saw it who took over; the other had nothing to say afterwards
    assert storm.successor.host != victim.node
    print(f"\ncut off, asleep: trained again after {storm.campaign.back_after(victim):.0f} s")


def test_no_training_is_lost_or_done_twice(storm):
    storm.campaign.assert_counted_once()
    storm.campaign.assert_one_writer()


def test_the_files_are_those_of_an_undisturbed_run(storm, undisturbed):
    storm.campaign.assert_as_undisturbed(undisturbed)
