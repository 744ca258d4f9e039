"""What happens to those who look after the jobs: slurmctld goes away for half a minute, Snakemake is killed."""

import re
import signal
import sys
from datetime import timedelta

import pytest
from campaign import ONE_SEED, SITE, Campaign, begin, now
from daemons import wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

AWAY = timedelta(seconds=30)
TWO_AT_ONCE = SITE.replace("most_jobs: 6", "most_jobs: 2").replace("train: {minutes: 2,", "train: {minutes: 5,")
UNTIL = ["--until", "train"]
RESUME = [sys.executable, "-m", "pipeline.resume", "x.yaml", "--where", "slurm"]
TOGETHER = ["--", "--config", "together=1", *UNTIL]


@pytest.fixture(scope="module")
def survivor(cluster, tmp_path_factory):
    """A run in which the controller crashes, comes back, leaves for a while; then Snakemake is killed, and resumed."""
    cluster.tidy()
    campaign = Campaign(tmp_path_factory.mktemp("control"), ONE_SEED, cluster.environment, TWO_AT_ONCE)
    campaign.has_seen_its_data()
    with campaign.started(*campaign.snakemake("--workflow-profile", "cluster/slurm", *UNTIL)) as process:
        first = campaign.victims(2, process)
        cluster.restart_controller(signal.SIGKILL)
        cluster.stop_controller()
        left = now()
        wait_until(lambda: now() - left > AWAY, "half a minute", 40)
        cluster.start_controller()
        second = campaign.victims(1, process, spare=[victim.job for victim in first])  # submitted after that
        process.kill()
        process.wait()
    (victim,) = second
    cluster.exec(victim.node, "kill", "-STOP", victim.holder.pid)  # else it might end before it is cancelled
    asked = campaign.run(*RESUME, *TOGETHER)
    with campaign.started(*RESUME, "--cancel", *TOGETHER) as process:
        wait_until(lambda: cluster.job(victim.slurm_job).state != "RUNNING", "it is cancelled", 60, campaign.output)
        cluster.exec(victim.node, "kill", "-CONT", victim.holder.pid)
        campaign.finish(process, 400)
    return campaign, first, second, asked


def test_trainings_do_not_notice_that_the_controller_is_away(survivor):
    campaign, first, _, _ = survivor
    for victim in first:
        (attempt,) = campaign.attempts(victim.job)
        assert (attempt.outcome, attempt.started) == ("finished", victim.holder.started)


def test_resume_does_nothing_beside_jobs_that_live(survivor):
    _, _, second, asked = survivor
    assert asked.returncode == 3, asked.stdout + asked.stderr
    assert re.search(rf"{second[0].slurm_job} +running", asked.stdout)
    assert "--wait" in asked.stdout


def test_a_training_whose_snakemake_was_killed_goes_on_from_its_checkpoint(survivor):
    campaign, _, (victim,), _ = survivor
    hit, *later = (a for a in campaign.attempts(victim.job) if begin(a) >= begin(victim.holder))
    assert (hit.outcome, hit.reason) == ("interrupted", "SIGTERM")
    assert later[0].from_step == hit.to_step >= victim.holder.step
    print(f"\nSnakemake killed: trained again after {campaign.back_after(victim):.0f} s")


def test_no_training_is_lost_or_done_twice(survivor):
    campaign, *_ = survivor
    campaign.assert_counted_once()
    campaign.assert_one_writer()


def test_the_files_are_those_of_an_undisturbed_run(survivor, undisturbed):
    campaign, *_ = survivor
    campaign.assert_as_undisturbed(undisturbed)
