"""What a node of a Ray of several nodes does by itself: ports, counts, and that nothing outlives its launcher."""

import importlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from pipeline.ray_environment import ON_NODES, ON_ONE_MACHINE, ray_environment
from pipeline.ray_node import (
    FIRST,
    LAST,
    OF_HEAD,
    SERVICES,
    STEP,
    Offer,
    Part,
    address_towards,
    command,
    cpus_here,
    gpus_here,
    port_is_free,
    ports,
    worker_ports,
)
from pipeline.ray_nodes import Interrupted, ray_on_nodes

PART = Part(12, "127.0.0.1", "", "n1", "/tmp/r-12-x", "/f/token", None, None, "/f")


def test_jobs_of_neighbouring_numbers_look_at_ports_of_their_own():
    found = [set(ports(job, lambda port: True).values()) for job in range(50)]
    assert len(set.union(*found)) == 50 * len(SERVICES)
    assert all(FIRST <= port < LAST for each in found for port in each)


def test_ports_that_are_taken_are_passed_over_and_none_is_an_error():
    free = ports(12, lambda port: True)
    taken = free[SERVICES[-1]]  # one is enough
    assert ports(12, lambda port: port != taken) == {service: port + STEP for service, port in free.items()}
    assert min(ports((LAST - FIRST) // STEP - 1, lambda port: port < LAST - STEP).values()) == FIRST
    with pytest.raises(ValueError, match="no 9 free ports in a row between 20000 and 30000 on "):
        ports(12, lambda port: False)


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_port_that_somebody_listens_on_is_not_free(address):
    with socket.create_server((address, 0), reuse_port=True) as server:
        port = server.getsockname()[1]
        assert not port_is_free(port)
    assert port_is_free(port)


def test_ports_of_workers_lie_apart_from_all_services():
    slices = {worker_ports(job) for job in range(100)}
    assert len(slices) == 11
    assert all(10_002 <= first < last < FIRST for first, last in slices)
    firsts = sorted(slices)
    assert all(last < first for (_, last), (first, _) in itertools.pairwise(firsts))


def test_the_address_is_the_one_on_the_way_there():
    assert address_towards("127.0.0.1") == "127.0.0.1"
    assert address_towards("localhost") in ("127.0.0.1", "::1")


def test_slurm_says_how_many_cpus_and_gpus():
    assert cpus_here({"SLURM_CPUS_ON_NODE": "7"}) == 7
    assert cpus_here({}) == len(os.sched_getaffinity(0))
    assert gpus_here({"SLURM_GPUS_ON_NODE": "4", "CUDA_VISIBLE_DEVICES": "0,1"}) == 4
    assert gpus_here({"CUDA_VISIBLE_DEVICES": "2,5"}) == 2
    assert gpus_here({"CUDA_VISIBLE_DEVICES": ""}) == gpus_here({}) == 0


def test_only_the_head_gets_the_ports_of_a_head():
    own = ports(12, lambda port: True)
    head = command(PART, Offer("10.0.0.1", own["port"], 3, 1), own)
    worker = command(Part(**asdict(PART) | {"head": "10.0.0.1:20120"}), Offer("10.0.0.2", 0, 3, 1), own)
    assert {"--head", f"--port={own['port']}"} <= set(head)
    assert "--address=10.0.0.1:20120" in worker
    assert not [word for word in worker if any(word.startswith(f"--{service}=") for service in OF_HEAD)]
    assert {"--num-cpus=3", "--num-gpus=1", f"--node-manager-port={own['node-manager-port']}"} <= {*head} & {*worker}


NODE = """
    import sys
    from pipeline import ray_node
    background = "import subprocess; subprocess.Popen(['sleep', '300'], start_new_session=True)"
    program = f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {background!r}])"
    program += "; time.sleep({LASTS})"
    ray_node.command = lambda *_: [sys.executable, "-c", program]
    ray_node.LOOK = 0.05
    sys.exit(ray_node.main(sys.argv[1:]))
"""


@pytest.fixture
def node(tmp_path):
    """Starts a node whose Ray leaves a process in the background, and lasts so many seconds."""
    started = []

    def start(lasts, token=True, head=""):
        (tmp_path / "own").mkdir()
        if token:
            (tmp_path / "own/token").touch()
        own = str(tmp_path / "own")
        part = Part(12, "127.0.0.1", head, "n1", str(tmp_path / "r"), f"{own}/token", 1, 0, own)
        program = textwrap.dedent(NODE).replace("{LASTS}", str(lasts))
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", program, json.dumps(asdict(part))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[0]

    yield start
    for process in started:
        process.kill()
        with process:  # closes its pipes
            pass


def wait_until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def sleeper(group):
    """The process in the background, of the node or an orphan: it carries the node's environment's mark."""
    found = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True).stdout.splitlines()
    rows = [line.split(None, 2) for line in found]
    return [int(pid) for pid, parent, words in rows if words == "sleep 300" and int(parent) == group]


def test_a_launcher_that_goes_takes_all_along(node, tmp_path):
    process = node(lasts=300)
    offer = json.loads(process.stdout.readline())
    assert offer == {"address": "127.0.0.1", "port": ports(12, port_is_free)["port"], "cpus": 1, "gpus": 0}
    wait_until(lambda: sleeper(process.pid))  # whose parents have gone
    (orphan,) = sleeper(process.pid)
    assert (tmp_path / "r").stat().st_mode & 0o777 == 0o700
    process.stdin.close()
    assert process.wait(10) == 0
    assert not os.path.exists(f"/proc/{orphan}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_what_asks_the_job_to_end_is_for_the_launcher_alone(node, number):
    """It may come to all processes at once, and without Ray no training could write its checkpoint."""
    process = node(lasts=300)
    wait_until(lambda: sleeper(process.pid))
    (orphan,) = sleeper(process.pid)
    for pid in (orphan, process.pid):
        os.kill(pid, number)
        wait_until(lambda pid=pid: is_pending(pid, number))  # it has arrived, and has no effect
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(10) == 0


def is_pending(pid, number):
    rows = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(rows["ShdPnd"], 16) >> number - 1 & 1)


# ---------------------------------------------------------------------- the launcher's node is lost


@pytest.fixture
def left(node, stand_in, monkeypatch):
    """A node whose Ray has ended, and which another Ray's head seems to have left."""
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURMD_NODENAME", "n2")
    with socket.create_server(("127.0.0.1", 0)) as head:
        process = node(lasts=1.5, head=f"127.0.0.1:{head.getsockname()[1]}")
        wait_until(lambda: sleeper(process.pid))  # it has seen the head
    return process


def asked_twice(stand_in):
    """SLURM has been asked for the nodes, and after that nothing was done at once."""
    wait_until(lambda: len(stand_in.calls("squeue")) >= 2)


def done_to_the_job(stand_in):
    return [*stand_in.calls("scontrol"), *stand_in.calls("scancel")]


def test_a_job_that_has_lost_its_first_node_is_begun_again(stand_in, tmp_path, left):
    """SLURM runs it on, as it was asked to, on nodes where nobody is. The token goes, too."""
    stand_in.add("12", nodes="n1,n2,n3")
    asked_twice(stand_in)
    assert done_to_the_job(stand_in) == []
    stand_in.add("12", nodes="n2,n3")
    assert left.wait(10) == 1
    assert done_to_the_job(stand_in) == [["requeue", "incomplete", "12"]]
    assert {path.name for path in tmp_path.iterdir()} == {"slurm"}


def test_where_that_is_not_allowed_it_ends(stand_in, left):
    stand_in.fail("scontrol", "Requested operation is presently disabled")
    stand_in.add("12", nodes="n2")
    assert left.wait(10) == 1
    assert stand_in.calls("scancel") == [["12"]]
    assert "first node of job 12 is lost: `scontrol` failed: Requested operation is" in left.stderr.read()


@pytest.mark.parametrize("nodes", ["n1,n2", "n2,n1", "n3,n2", ""])
def test_it_is_left_alone_while_the_first_node_is_there_and_by_all_but_one(stand_in, left, nodes):
    """The launcher may be about to end: then it says so."""
    stand_in.add("12", nodes=nodes)
    asked_twice(stand_in)
    assert left.poll() is None
    left.stdin.close()
    assert left.wait(10) == 0
    assert done_to_the_job(stand_in) == []


def test_it_is_left_alone_by_a_slurm_that_does_not_answer(stand_in, left):
    stand_in.fail("squeue", "Unable to contact slurm controller")
    asked_twice(stand_in)
    left.stdin.close()
    assert left.wait(10) == 0
    assert done_to_the_job(stand_in) == []


def test_it_is_left_alone_when_it_is_asked_to_end(stand_in, left):
    stand_in.add("12", nodes="n1,n2")
    asked_twice(stand_in)
    left.send_signal(signal.SIGTERM)
    assert left.wait(10) == 1
    assert done_to_the_job(stand_in) == []


def test_where_the_head_lives_an_end_is_a_failure_at_once(node, stand_in, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURMD_NODENAME", "n2")
    stand_in.add("12", nodes="n2")
    with socket.create_server(("127.0.0.1", 0)) as head:
        assert node(lasts=0, head=f"127.0.0.1:{head.getsockname()[1]}").wait(10) == 1
    assert done_to_the_job(stand_in) == []


def test_a_ray_that_ends_by_itself_is_a_failure_whose_log_stays(node, tmp_path):
    process = node(lasts=0)
    assert process.wait(10) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_a_token_that_is_not_seen_is_one_line(node, tmp_path):
    process = node(lasts=300, token=False)
    assert process.wait(10) == 1
    assert process.stderr.read().startswith(f"error: {tmp_path}/own/token is not seen on ")


def test_outside_slurm_it_is_refused(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(ValueError, match="needs a SLURM allocation, and this process runs in none"), ray_on_nodes():
        pass


@pytest.fixture
def waiting_job(tmp_path, monkeypatch):
    """Two nodes of SLURM's that say nothing; a signal is noted. The folder of its Ray, and what was noted."""
    (tmp_path / "bin").mkdir()
    srun = tmp_path / "bin/srun"  # ends when its launcher does
    srun.write_text(f"#!/bin/sh\necho $$ >> {tmp_path}/started\nexec cat > /dev/null\n")
    srun.chmod(0o755)
    for name, value in {"SLURM_JOB_ID": "12", "SLURMD_NODENAME": "n1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    noted = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: noted.append(number))
    (tmp_path / "shared").mkdir()
    yield tmp_path / "shared", noted
    signal.signal(signal.SIGTERM, before)


def test_asked_to_end_while_it_waits_for_its_nodes_it_does(waiting_job, tmp_path):
    """They have three minutes, which is more than the time that SLURM gives to one who is to end."""
    folder, noted = waiting_job
    importlib.import_module("ray")  # it sets a variable for itself then
    handler, environment = signal.getsignal(signal.SIGTERM), dict(os.environ)

    def ask():
        wait_until((tmp_path / "started").exists)
        os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=ask)
    asking.start()
    began = time.monotonic()
    with pytest.raises(Interrupted), ray_on_nodes(nodes=["n1", "n2"], folder=str(folder), patience=20):
        pass
    asking.join()
    assert time.monotonic() - began < 10
    assert noted == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is handler
    assert list(folder.iterdir()) == []
    assert not os.path.exists(f"/proc/{(tmp_path / 'started').read_text().strip()}")
    assert dict(os.environ) == environment


# ---------------------------------------------------------------------- what Ray finds in the environment


@pytest.mark.parametrize("more", [ON_ONE_MACHINE, ON_NODES])
def test_the_environment_leads_to_no_other_ray_and_is_in_the_end_what_it_was(more, monkeypatch):
    for name, value in {"RAY_ADDRESS": "192.0.2.1:6379", "RAY_AUTH_MODE": "k8s", "PYTHONPATH": "/theirs"}.items():
        monkeypatch.setenv(name, value)
    importlib.import_module("ray")  # it sets a variable for itself then
    before = dict(os.environ)
    with ray_environment("/f/token", more):
        found = {name: os.environ.get(name) for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")}
        assert found == {"RAY_ADDRESS": None, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/f/token"}
        assert os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] == "0"
        assert os.environ["PYTHONPATH"].split(":")[1:] == ["/theirs"]
        reaches_others = importlib.import_module("ray._private.ray_constants").ENABLE_RAY_CLUSTER
        assert reaches_others == (more is ON_NODES)
    assert dict(os.environ) == before
