"""The cluster of the tests is a real one: several hosts, and each fault does what it does in real life."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from daemons import Unavailable, wait_until
from node import Network
from packages import require_packages
from slurm_conf import groups_of_version_1

from cluster import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(120, func_only=True)]

HERE = Path(__file__).parent
OTHER = Network("other", "10.213.79", 26960)
OUT_OF_MEMORY = "OUT_OF_MEMORY" if groups_of_version_1() else "FAILED"
SLEEP = "trap 'exit 0' TERM; hostname; sleep 300 & wait"  # a job that says where it runs, and goes when it is told


def processes_with(text: str) -> list[str]:
    """The command lines, zombies aside, that mention it."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in words and entry.name != str(os.getpid()):
            found.append(words)
    return found


def sleeps_on(cluster, node):
    return "sleep 300" in cluster.exec(node, "ps", "ax").stdout


def test_each_node_is_a_host(cluster):
    done = cluster.run("srun", "--nodes=2", "hostname")
    assert sorted(done.stdout.split()) == ["gode1", "gode2"], done.stderr
    addresses = [cluster.exec(node, "hostname", "--all-ip-addresses").stdout.strip() for node in cluster.nodes]
    assert addresses == [f"10.213.78.{i}" for i in range(1, 5)]


def test_a_job_gets_the_stand_in_gpus_that_it_asks_for(cluster):
    done = cluster.run("srun", "--gres=gpu:2", "--nodes=1", "printenv", "CUDA_VISIBLE_DEVICES")
    assert done.stdout.strip() == "0,1", done.stderr
    assert cluster.run("srun", "--gres=gpu:3", "--nodes=1", "true").returncode


def test_a_job_on_a_node_that_was_cut_off_goes_on_on_another(cluster):
    """And until the cut is healed, two copies of it live: the case that a lease is for."""
    job = cluster.submit(SLEEP, "--requeue")
    first = cluster.wait_for_job(job, "RUNNING").node
    wait_until(lambda: sleeps_on(cluster, first), "the job sleeps", 10)
    cluster.cut(first)
    wait_until(lambda: cluster.job(job).node != first, "the job is taken from there", 60)
    second = cluster.wait_for_job(job, "RUNNING").node
    assert second != first
    wait_until(lambda: sleeps_on(cluster, second), "the job sleeps again", 10)
    assert sleeps_on(cluster, first)
    cluster.heal(first)
    wait_until(lambda: not sleeps_on(cluster, first), "the lost copy is ended", 20)
    assert cluster.job(job).node == second


def test_a_node_that_crashed_loses_its_jobs_and_comes_back(cluster):
    job = cluster.submit(SLEEP, "--nodelist=gode2", "--no-requeue")
    cluster.wait_for_job(job, "RUNNING")
    cluster.crash("gode2")
    cluster.wait_for_job(job, "NODE_FAIL")
    cluster.start("gode2")
    assert cluster.run("srun", "--nodelist=gode2", "hostname").stdout.strip() == "gode2"


def test_a_job_lives_on_without_slurmd(cluster):
    job = cluster.submit(SLEEP, "--nodelist=gode1")
    cluster.wait_for_job(job, "RUNNING")
    wait_until(lambda: sleeps_on(cluster, "gode1"), "the job sleeps", 10)
    cluster.kill_slurmd("gode1")
    assert not cluster.nodes["gode1"].slurmd_running
    assert sleeps_on(cluster, "gode1")
    cluster.start("gode1")
    assert cluster.job(job).state == "RUNNING"


def test_more_memory_than_asked_for_ends_the_job(cluster):
    script = f"{sys.executable} -S -c 'x = bytearray(200_000_000); import time; time.sleep(30)'"
    job = cluster.submit(script, "--mem=50")
    assert cluster.wait_for_job(job, "OUT_OF_MEMORY", "FAILED").state == OUT_OF_MEMORY
    enough = cluster.submit(f"{sys.executable} -S -c 'x = bytearray(200_000_000)'", "--mem=400")
    cluster.wait_for_job(enough, "COMPLETED")


def test_the_low_partition_gives_way_and_runs_again(cluster):
    low = cluster.submit(SLEEP, "--partition=low", "--nodes=4", "--exclusive", "--requeue")
    cluster.wait_for_job(low, "RUNNING")
    urgent = cluster.submit("true", "--nodelist=gode1")
    cluster.wait_for_job(urgent, "COMPLETED")
    cluster.wait_for_job(low, "RUNNING")
    assert "Restarts=1" in cluster.run("scontrol", "show", "job", low).stdout


def test_jobs_outlive_the_controller(cluster):
    job = cluster.submit(SLEEP)
    row = cluster.wait_for_job(job, "RUNNING")
    cluster.stop_controller()
    with pytest.raises(RuntimeError, match="squeue"):
        cluster.squeue()
    cluster.start_controller()
    assert cluster.job(job) == row


def test_a_hidden_folder_is_hidden_on_one_node(cluster, tmp_path):
    (tmp_path / "here").touch()
    cluster.hide("gode2", tmp_path)
    assert cluster.exec("gode1", "ls", tmp_path).stdout.split() == ["here"]
    assert cluster.exec("gode2", "ls", tmp_path).stdout.split() == []
    cluster.show("gode2", tmp_path)
    assert cluster.exec("gode2", "ls", tmp_path).stdout.split() == ["here"]


def test_a_second_cluster_is_refused(cluster, tmp_path):
    with pytest.raises(Unavailable, match="another cluster of these tests is up"):
        Cluster(tmp_path).up()


def test_without_packages_it_says_what_to_type(monkeypatch, tmp_path):
    monkeypatch.setattr("packages.SYSTEM_PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="apt-get install --no-install-recommends slurmctld slurmd slurm-client"):
        require_packages(False, tmp_path / "log")


@pytest.mark.parametrize(("required", "found"), [("0", "1 skipped"), ("1", "1 error")])
def test_where_there_can_be_none_tests_are_skipped_or_fail(cluster, tmp_path, required, found):
    """A second session of tests, to which the first is in the way."""
    one = f"{__file__}::{test_each_node_is_a_host.__name__}"
    command = [sys.executable, "-m", "pytest", "-q", "-rsE", "-m", "slurm", "-p", "no:cacheprovider", one]
    # A folder of its own: with the common one it would, at its end, first remove what former sessions left, which
    # may be gigabytes.
    command += ["--basetemp", tmp_path / "second"]
    environment = os.environ | {"GODE_REQUIRE_SLURM": required}
    done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, timeout=100)
    assert found in done.stdout
    assert "no SLURM here: another cluster of these tests is up: the bridge gode0 is in use" in done.stdout


AS_A_PROGRAM = """
    import sys
    from pathlib import Path
    from cluster import Cluster
    from node import Network
    with Cluster(Path(sys.argv[1]), nodes=1, network=Network(*sys.argv[3:5], int(sys.argv[5]))) as cluster:
        cluster.wait_for_job(cluster.submit("sleep 300"), "RUNNING")
        print("up", flush=True)
        if sys.argv[2] == "stay":
            sys.stdin.read()
"""


@pytest.mark.usefixtures("cluster")  # where there can be none, there is none to look for
@pytest.mark.parametrize("end", ["stay", "leave"])
def test_nothing_stays_behind(tmp_path, end):
    """No process after SIGKILL of the one that had a cluster; after `down`, with a job running, nothing at all."""
    words = [str(tmp_path), end, OTHER.name, OTHER.subnet, str(OTHER.port)]
    command = [sys.executable, "-c", textwrap.dedent(AS_A_PROGRAM), *words]
    with subprocess.Popen(command, cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout.readline() == "up\n"
        if end == "stay":
            assert processes_with(str(tmp_path / "run"))
            program.kill()
    wait_until(lambda: not processes_with(str(tmp_path)), f"no process of {tmp_path}", 10)
    if end == "leave":
        assert program.returncode == 0
        assert not Path(f"/sys/class/net/{OTHER.bridge}").exists()
        assert not list(Path("/sys/fs/cgroup").glob(f"*/slurm_{OTHER.name}*"))
