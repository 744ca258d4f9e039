"""What happens to single jobs of a run on SLURM, all in one run: each goes on, and ends with the files of calm weather.
(test_search_on_nodes.py goes the whole way, to the report.)

The trainings are short; one that is to be too slow is made so by SIGSTOP, which costs the others no time.
"""

import re
from dataclasses import dataclass, field

import pytest
from campaign import EXPERIMENT, SITE, Campaign, Victim, now
from daemons import wait_until

from pipeline.site import OF_SNAKEMAKE_MB
from pipeline.slurm import minutes

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

TOO_LITTLE = 300  # MB, for Snakemake and a training
SLOW, LEFT = 31, 57  # seconds: a training of two minutes that was so slow to answer keeps the half for a checkpoint


@dataclass
class Storm:
    """A run, and what was done to its jobs."""

    campaign: Campaign
    victims: dict[str, Victim] = field(default_factory=dict)  # by fault
    states: dict[str, str] = field(default_factory=dict)  # SLURM's last word on the job that was hit, by fault
    starved: tuple[str, str] = ("", "")  # a job and its SLURM job, which asked for too little memory


@pytest.fixture(scope="module")
def storm(cluster, tmp_path_factory):
    cluster.tidy()
    campaign = Campaign(tmp_path_factory.mktemp("jobs"), EXPERIMENT, cluster.environment, SITE)
    campaign.has_seen_its_data()
    storm = Storm(campaign)
    cluster.run("scontrol", "update", "partition=low", "state=down")  # jobs wait until all is prepared
    with campaign.started(*campaign.snakemake("--workflow-profile", "cluster/slurm", "--until", "train")) as process:
        wait_until(lambda: len(waiting(cluster)) == 6, "six trainings are queued", 60, campaign.output)
        poor = waiting(cluster)[0]
        cluster.run("scontrol", "update", f"jobid={poor.id}", f"minmemorynode={TOO_LITTLE}")
        cluster.run("scontrol", "update", "partition=low", "state=up")
        hit_each(cluster, storm, campaign.victims(5, process))
        ended = cluster.wait_for_job(poor.id, "OUT_OF_MEMORY", "FAILED")
        storm.starved = ended.comment.partition("_wildcards_")[2], ended.id
        campaign.finish(process, 400)
    for fault, victim in storm.victims.items():
        storm.states[fault] = cluster.job(victim.slurm_job).state
    return storm


def waiting(cluster):
    return [row for row in cluster.squeue() if row.state == "PENDING"]


def hit_each(cluster, storm, victims):
    """One fault for each; the two that have to do with time last longest, so they come first. The limit of the one is
    cut to a minute when it is asleep: from the start it would have to do for six trainings that begin at once."""
    asleep, slow, signalled, requeued, cancelled = victims
    storm.victims = {"overdue": asleep, "near its end": slow}
    storm.victims |= {"SIGUSR1": signalled, "requeue": requeued, "scancel": cancelled}
    for victim in (asleep, slow):
        cluster.exec(victim.node, "kill", "-STOP", victim.holder.pid)
    for command in (
        ("scontrol", "update", f"jobid={asleep.slurm_job}", "timelimit=1"),
        ("scancel", "--signal=USR1", signalled.slurm_job),
        ("scontrol", "requeue", requeued.slurm_job),
        ("scancel", cancelled.slurm_job),
    ):
        done = cluster.run(*command)
        assert not done.returncode, done.stderr
    wait_until(lambda: is_slow_and_late(cluster, slow), "the slow one's end is near", 120)
    cluster.exec(slow.node, "kill", "-CONT", slow.holder.pid)


def is_slow_and_late(cluster, victim):
    left = cluster.run("squeue", "--noheader", f"--jobs={victim.slurm_job}", "--format=%L").stdout
    return (now() - victim.at).total_seconds() > SLOW and 60 * (minutes(left) or 0) < LEFT


def asked_for(cluster, slurm_job):
    """What a SLURM job was submitted with, in SLURM's words."""
    shown = cluster.run("scontrol", "show", "job", slurm_job).stdout
    return dict(word.split("=", 1) for word in shown.split() if "=" in word)


@pytest.mark.parametrize(
    ("fault", "state", "reason"),
    [
        ("SIGUSR1", "FAILED", "SIGUSR1"),
        ("scancel", "CANCELLED", "SIGTERM"),
        ("requeue", None, "SIGTERM"),  # the same SLURM job goes on
        ("near its end", "FAILED", "the time limit is near"),
    ],
)
def test_a_job_that_is_ended_writes_a_checkpoint_and_goes_on_from_it(storm, fault, state, reason):
    victim = storm.victims[fault]
    assert state in (None, storm.states[fault])
    hit, successor = storm.campaign.hit_and_next(victim)
    assert (hit.outcome, hit.reason) == ("interrupted", reason)
    assert hit.to_step >= victim.holder.step > 0
    assert successor.from_step == hit.to_step
    assert (successor.slurm_job == hit.slurm_job) == (fault == "requeue")
    print(f"\n{fault}: trained again after {storm.campaign.back_after(victim):.0f} s")


def test_a_job_that_answers_nothing_is_killed_at_its_time_limit_and_gets_more_time(cluster, storm):
    victim = storm.victims["overdue"]
    assert storm.states["overdue"] == "TIMEOUT"
    hit, successor = storm.campaign.hit_and_next(victim)
    assert (hit.outcome, hit.to_step) == ("killed", 0)  # no checkpoint yet: the first comes after ten seconds
    assert successor.from_step == 0
    assert asked_for(cluster, successor.slurm_job)["TimeLimit"] == "00:04:00"  # twice as much
    print(f"\noverdue: trained again after {storm.campaign.back_after(victim):.0f} s")


def test_a_job_with_too_little_memory_asks_for_more(cluster, storm):
    """The kernel ended it, in whichever of its processes; SLURM's word is FAILED or OUT_OF_MEMORY accordingly."""
    job, slurm_job = storm.starved
    (log,) = storm.campaign.folder.glob(f".snakemake/slurm_logs/*/{job}/{slurm_job}.log")
    assert re.search("oom[-_ ]kill|Out Of Memory", log.read_text(), re.IGNORECASE)
    successor = next(it.slurm_job for it in storm.campaign.attempts(job) if it.slurm_job != slurm_job)
    assert asked_for(cluster, successor)["MinMemoryNode"] == f"{2 * 400 + OF_SNAKEMAKE_MB}M"  # not of the same again


def test_no_training_is_lost_or_done_twice(storm):
    storm.campaign.assert_counted_once()
    storm.campaign.assert_one_writer()


def test_the_files_are_those_of_an_undisturbed_run(storm, undisturbed):
    storm.campaign.assert_as_undisturbed(undisturbed)
