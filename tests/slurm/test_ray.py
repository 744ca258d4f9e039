"""Ray on two nodes of an allocation: it comes up, outlives the loss of one, and leaves nothing behind.

What was done is read from a file that the driver writes when all of it is done.
"""

import json
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from daemons import Daemon, wait_until
from test_cluster import processes_with

from pipeline.ray_node import FIRST, STEP

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(150, func_only=True)]

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TWO_NODES = ("--nodes=2", "--ntasks=2", "--cpus-per-task=2", "--mem=2500", "--nodelist=gode1,gode2")


STEP_OF_SNAKEMAKE = "srun -n1 --cpu-bind=q --cpus-per-task=2 --nodes=2"  # as its executor runs a rule without `mpi`


def submit(cluster, what, folder, *options, by="", after="", patience="90"):
    """A job that runs the driver once, on its first node, in `folder`; `by`: in a step of its own."""
    words = [*by.split(), sys.executable, HERE / "ray_driver.py", what, folder, patience]
    run = f"cd {folder} && export PYTHONPATH={ROOT} && {shlex.join(map(str, words))}"
    job = cluster.submit(f"{run}; code=$?; {after or 'exit $code'}", *TWO_NODES, *options)
    forget(job)
    return job


def forget(job):
    """What a job of this number left on disks when tests were killed: a new cluster's numbers begin at 1."""
    for left in Path("/tmp").glob(f"r-{job}-*"):
        shutil.rmtree(left, ignore_errors=True)


def wait_for(cluster, job, file, seconds=90):
    """What the driver wrote. TimeoutError with the end of the job's output if it does not, or AssertionError."""

    def there():
        assert file.exists() or cluster.job(job).live or file.exists(), (cluster.logs / f"job{job}.out").read_text()
        return file.exists()

    wait_until(there, f"{file.name} is there", seconds, cluster.logs / f"job{job}.out")
    return file.read_text()


def assert_nothing_is_left(job, folder, seconds=15):
    """No process on any node, no folder on a node's disk, no token."""
    wait_until(lambda: not processes_with(f"/tmp/r-{job}-"), f"no process of Ray of job {job} is left", seconds)
    assert list(Path("/tmp").glob(f"r-{job}-*")) == []  # the nodes of the tests share it
    assert list(folder.glob(".ray-*")) == []


def assert_only_a_lost_disk_holds_more(job, folder):
    """Nothing is left but what a node that lost its power has on its disk."""
    for left in Path("/tmp").glob(f"r-{job}-*-1"):  # of the second node
        shutil.rmtree(left)
    assert_nothing_is_left(job, folder)


@contextmanager
def ray_of_somebody_else(cluster, node, port, folder):
    """On one node, started by hand."""
    temporary = folder.parents[2] / "else"  # short: sockets lie in it
    options = [f"--port={port}", f"--temp-dir={temporary}", "--include-dashboard=false", "--num-cpus=1"]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", *options, "--disable-usage-stats"]
    token = folder / "their-token"
    token.write_text("a" * 64)
    environment = cluster.environment | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    words = [*cluster.nodes[node].inside(), *command, "--object-store-memory=80000000", "--block"]
    daemon = Daemon("another Ray", words, cluster.logs / "else.log", environment)
    daemon.ready(lambda: "Ray runtime started" in (cluster.logs / "else.log").read_text(), 60)
    try:
        yield lambda: sorted(line for line in processes_with(str(temporary)) if "ray_node" not in line)
    finally:
        for pid in cluster.exec(node, "pgrep", "-f", str(temporary)).stdout.split():
            cluster.exec(node, "kill", "-KILL", pid)
        daemon.stop()


def test_two_nodes_work_together_beside_another_ray_that_has_their_port(cluster, tmp_path):
    job = submit(cluster, "both", tmp_path, "--hold", "--gres=gpu:2")
    port = FIRST + int(job) * STEP  # where this job looks first
    with ray_of_somebody_else(cluster, "gode1", port, tmp_path) as their_processes:
        before = their_processes()
        began = time.monotonic()
        cluster.run("scontrol", "release", job)
        proof = json.loads(wait_for(cluster, job, tmp_path / "proof.json"))
        print(f"\ntwo nodes: all done after {time.monotonic() - began:.0f} s")
        cluster.wait_for_job(job, "COMPLETED")
        assert_nothing_is_left(job, tmp_path)
        assert before
        assert set(before) <= set(their_processes())
        assert "LISTEN" in cluster.exec("gode1", "ss", "-Hltn", f"sport = :{port}").stdout
    assert set(proof["tasks"]) == {"gode1", "gode2"}
    assert (proof["nodes"], proof["cpus"], proof["gpus"]) == (2, 4, 4)
    assert {worker["host"] for worker in proof["workers"]} == {"gode1", "gode2"}
    for worker in proof["workers"]:
        assert (worker["token"], worker["mode"]) == (proof["token"], "0o600")
        assert (worker["OMP_NUM_THREADS"], worker["SLURM_JOB_ID"]) == ("1", job)


def test_tasks_and_workers_of_a_node_that_crashes_go_on_elsewhere(cluster, tmp_path):
    job = submit(cluster, "crash", tmp_path, "--no-kill", by=STEP_OF_SNAKEMAKE)
    wait_until(lambda: any(tmp_path.glob("task-*-gode2")), "a task runs on gode2", 90, cluster.logs / f"job{job}.out")
    wait_until(lambda: any(tmp_path.glob("call-*-gode2")), "a call runs there", 30, cluster.logs / f"job{job}.out")
    cluster.crash("gode2")
    began = time.monotonic()
    wait_until(lambda: repeated(tmp_path), "what ran there runs on gode1", 40, cluster.logs / f"job{job}.out")
    print(f"\ncrash: repeated after {time.monotonic() - began:.0f} s", end="")
    proof = json.loads(wait_for(cluster, job, tmp_path / "proof.json"))
    print(f", all done after {time.monotonic() - began:.0f} s")
    cluster.wait_for_job(job, "COMPLETED")
    assert (len(proof["tasks"]), len(proof["calls"])) == (24, 24)
    assert {*proof["tasks"][-3:], *proof["calls"][-3:]} == {"gode1"}
    assert "Ray on node gode2 has ended" in (cluster.logs / f"job{job}.out").read_text()
    assert_only_a_lost_disk_holds_more(job, tmp_path)


def repeated(folder):
    """A task, and a call of the worker, that began on gode2 and then on gode1."""
    on = {node: {p.name.rpartition("-")[0] for p in folder.glob(f"*-{node}")} for node in ("gode1", "gode2")}
    return {name.split("-")[0] for name in on["gode1"] & on["gode2"]} == {"task", "call"}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("its folder is empty", "token is not seen on gode2: it must lie in a folder of all nodes"),
        ("no slurmd", "Ray on node gode2 ended (233): srun: error: Task launch"),
        ("none, but no patience", "no Ray on gode1"),
    ],
)
def test_a_node_that_does_not_come_is_one_line(cluster, tmp_path, fault, reason):
    patience = "0" if fault == "none, but no patience" else "60"
    job = submit(cluster, "wait", tmp_path, "--no-kill", patience=patience)
    cluster.wait_for_job(job, "RUNNING")
    if fault == "its folder is empty":
        cluster.hide("gode2", tmp_path)
    elif fault == "no slurmd":
        cluster.kill_slurmd("gode2")
    (tmp_path / "go").touch()
    error = wait_for(cluster, job, tmp_path / "error.txt", 30)
    if fault == "its folder is empty":
        cluster.show("gode2", tmp_path)
    assert reason in error
    assert "\n" not in error
    assert_nothing_is_left(job, tmp_path)


def test_copies_of_a_program_start_no_ray_each(cluster, tmp_path):
    words = [sys.executable, HERE / "ray_driver.py", "both", tmp_path]
    done = cluster.run("env", f"PYTHONPATH={ROOT}", "srun", "-N2", "-n2", *words)
    assert done.returncode
    assert "srun started this program more than once" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_driver_that_is_killed_takes_its_ray_along(cluster, tmp_path):
    """In an allocation that lives on: nothing ends with the job."""
    job = submit(cluster, "stay", tmp_path, after="sleep 300")
    pid = wait_for(cluster, job, tmp_path / "pid")
    assert processes_with(f"/tmp/r-{job}-")
    cluster.exec("gode1", "kill", "-KILL", pid)
    assert_nothing_is_left(job, tmp_path)
    assert cluster.job(job).state == "RUNNING"


SNAKEFILE = """
rule once:
    output: "proof.json"
    threads: 2
    resources: nodes=2, tasks=2, mpi="srun", mem_mb=2800, runtime=5, slurm_extra="--no-kill --nodelist=gode1,gode2"
    shell: "echo begun >> begun; {python} {driver} both $PWD"
"""


@pytest.mark.timeout(300)  # the pause between two looks at the queue grows to a minute
def test_a_rule_of_snakemake_runs_its_command_once_on_all_its_nodes(cluster, tmp_path):
    text = SNAKEFILE.replace("{python}", sys.executable).replace("{driver}", str(HERE / "ray_driver.py"))
    (tmp_path / "Snakefile").write_text(text)
    options = ["--executor=slurm", "--jobs=1", "--slurm-status-command=squeue"]
    options += ["--slurm-init-seconds-before-status-checks=12", "--default-resources", "slurm_partition=main"]
    environment = cluster.environment | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", *options],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    proof = json.loads((tmp_path / "proof.json").read_text())
    assert set(proof["tasks"]) == {"gode1", "gode2"}
    assert proof["cpus"] == 4
    assert (tmp_path / "begun").read_text().split() == ["begun"]
