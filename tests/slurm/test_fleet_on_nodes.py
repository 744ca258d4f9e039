"""A fleet on two nodes: asked to end, and begun again; one of its nodes crashes, the first or the other. All trainings
are finished, with the files of an undisturbed run."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from campaign import ONE_SEED, Campaign, Victim, now
from daemons import wait_until
from test_ray import TWO_NODES, assert_nothing_is_left, assert_only_a_lost_disk_holds_more, forget

from cluster import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600, func_only=True)]  # not of the undisturbed run


@dataclass(frozen=True)
class Running:
    """A SLURM job, asked like a process."""

    cluster: Cluster
    job: str

    def poll(self):
        return None if self.cluster.job(self.job).live else 1


def submitted(cluster, campaign):
    """The number of a SLURM job that trains all of a campaign."""
    folder = campaign.folder
    script = [folder / "cluster/ray.sbatch", "--experiment=x.yaml", "--device=cpu", "--checkpoint-seconds=2"]
    options = [f"--chdir={folder}", f"--output={campaign.output}", f"--export=ALL,PYTHONPATH={folder}", *TWO_NODES]
    done = cluster.run("sbatch", "--parsable", *options, *script, "--done=finished")
    job = done.stdout.strip()
    assert job, done.stderr
    forget(job)
    return job


def victims_on(node, cluster, campaign, job):
    """The trainings that are under way there, as soon as there are any."""
    running, found = Running(cluster, job), []

    def look():
        assert running.poll() is None, f"all is over\n{campaign.output.read_text()[-3000:]}"
        there = {name: it for name in campaign.jobs if (it := campaign.training(name)) is not None}
        found[:] = [Victim(name, it, now()) for name, it in there.items() if it.host == node]
        return bool(found)

    wait_until(look, f"a training is under way on {node}", 120, campaign.output)
    return found


def assert_whole(cluster, campaign, job, undisturbed):
    """It ends, and all was trained once."""
    done = cluster.wait_for_job(job, "COMPLETED", "FAILED", "CANCELLED", seconds=500)
    assert done.state == "COMPLETED", campaign.output.read_text()[-4000:]
    assert (campaign.folder / "finished").exists()
    campaign.assert_as_undisturbed(undisturbed)
    campaign.assert_counted_once()
    campaign.assert_one_writer()


def test_a_fleet_that_is_asked_to_end_and_then_loses_a_node_ends_with_the_files_of_an_undisturbed_run(
    cluster, undisturbed, tmp_path
):
    """Ray's own processes are asked as well, and first; without them there would be no checkpoint."""
    campaign = Campaign(tmp_path, ONE_SEED, cluster.environment)
    first = submitted(cluster, campaign)
    asked = campaign.victims(2, Running(cluster, first))
    for what in (["--signal=TERM"], ["--batch", "--signal=TERM"]):  # its steps; its script
        done = cluster.run("scancel", *what, first)
        assert not done.returncode, done.stderr
    cluster.wait_for_job(first, "FAILED", seconds=30)  # 85: not finished
    for victim in asked:
        (hit,) = campaign.hit_and_next(victim)
        assert (hit.outcome, hit.reason) == ("interrupted", "SIGTERM")
        assert hit.to_step >= victim.holder.step > 0
    assert_nothing_is_left(first, tmp_path)

    job = submitted(cluster, campaign)
    lost = victims_on("gode2", cluster, campaign, job)
    cluster.crash("gode2")
    assert_whole(cluster, campaign, job, undisturbed)
    for victim in asked:
        hit, successor = campaign.hit_and_next(victim)
        assert (successor.from_step, successor.slurm_job) == (hit.to_step, job)
    for victim in lost:
        hit, successor = campaign.hit_and_next(victim)
        assert (hit.outcome, successor.host) == ("killed", "gode1")
        print(f"\na node of the fleet lost: trained again after {campaign.back_after(victim):.0f} s")
    assert "Ray on node gode2 has ended" in campaign.output.read_text()
    assert_only_a_lost_disk_holds_more(job, tmp_path)


def test_a_fleet_that_loses_its_first_node_is_begun_again_by_the_other(cluster, undisturbed, tmp_path):
    """SLURM, asked to end no job for one node, would leave it to idle until its time limit."""
    campaign = Campaign(tmp_path, ONE_SEED, cluster.environment)
    job = submitted(cluster, campaign)
    lost = victims_on("gode1", cluster, campaign, job)
    cluster.crash("gode1")
    cluster.wait_for_job(job, "PENDING", seconds=150)
    assert list(tmp_path.glob(".ray-*")) == []
    assert list(Path("/tmp").glob(f"r-{job}-*-1")) == []  # of the second node
    forget(job)  # on the disk of the first
    cluster.start("gode1")
    assert_whole(cluster, campaign, job, undisturbed)
    for victim in lost:
        hit, successor = campaign.hit_and_next(victim)
        assert (hit.outcome, successor.slurm_job) == ("killed", job)
        print(f"\nthe first node of the fleet lost: trained again after {campaign.back_after(victim):.0f} s")
    assert_nothing_is_left(job, tmp_path)
