"""What the tests of Ray run inside of an allocation, once, on its first node: `python ray_driver.py WHAT FOLDER`.

It writes FOLDER/proof.json at the end of its work, or FOLDER/error.txt if Ray did not come up: an exit code alone
would not say that the work was done.
"""

import json
import os
import socket
import stat
import sys
import time
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.ray_nodes import NoRay, ray_on_nodes

SLOW = 1.5  # seconds of a task


@ray.remote(max_retries=3)
def where(folder: str, i: int) -> str:
    Path(folder, f"task-{i}-{socket.gethostname()}").touch()
    time.sleep(SLOW)
    return socket.gethostname()


@ray.remote(num_cpus=0, max_restarts=3, max_task_retries=-1)
class Worker:
    """Does what a warm worker of trainings does: many calls, one process. Each vain attempt to reach the node that
    crashed counts as a retry, and three may be over before Ray has given the node up."""

    def facts(self) -> dict:
        token = os.environ["RAY_AUTH_TOKEN_PATH"]
        mode = stat.S_IMODE(os.stat(token).st_mode)
        environment = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "SLURM_JOB_ID")}
        return {"host": socket.gethostname(), "token": token, "mode": oct(mode), **environment}

    def work(self, folder: str, i: int) -> str:
        Path(folder, f"call-{i}-{socket.gethostname()}").touch()
        time.sleep(SLOW)
        return socket.gethostname()


def on_each() -> list[dict]:
    """Options that lead to one node after the other. (SPREAD is no more than a wish.)"""
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    return [{"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)} for node in nodes]


def both(folder: str, token_file: str) -> dict:
    """Tasks on each node, and a worker on each."""
    tasks = [where.options(**options).remote(folder, i) for i in range(3) for options in on_each()]
    workers = [Worker.options(**options).remote() for options in on_each()]
    facts = ray.get([worker.facts.remote() for worker in workers])
    found = {"tasks": ray.get(tasks), "workers": facts, "token": token_file, "nodes": len(ray.nodes())}
    return found | {"cpus": ray.cluster_resources()["CPU"], "gpus": ray.cluster_resources().get("GPU", 0)}


def apart() -> list:
    """A worker on each of two nodes, free to go on elsewhere. Ray puts them apart as it likes: it is asked again."""
    while True:
        workers = [Worker.options(scheduling_strategy="SPREAD").remote() for _ in range(2)]
        hosts = {facts["host"] for facts in ray.get([worker.facts.remote() for worker in workers])}
        if len(hosts) == 2:
            return workers
        for worker in workers:
            ray.kill(worker)


def crash(folder: str, token_file: str) -> dict:
    """More tasks than fit at once, and calls of a worker on each node, of which one is going to crash."""
    workers = apart()
    calls = [workers[i % 2].work.remote(folder, i) for i in range(24)]
    tasks = [where.options(scheduling_strategy="SPREAD").remote(folder, i) for i in range(24)]
    return {"tasks": ray.get(tasks), "calls": ray.get(calls)}


def stay(folder: str, token_file: str) -> dict:
    Path(folder, "pid").write_text(str(os.getpid()))
    time.sleep(300)
    return {}


def main(what: str, folder: str, patience: str = "90") -> None:
    while what == "wait" and not Path(folder, "go").exists():
        time.sleep(0.1)
    try:
        with ray_on_nodes(folder=folder, patience=float(patience)) as there:
            ray.init(address=there.address)
            found = {"both": both, "crash": crash, "stay": stay}[what](folder, there.token_file)
            ray.shutdown()
    except NoRay as error:
        Path(folder, "error.part").write_text(str(error))
        os.replace(f"{folder}/error.part", f"{folder}/error.txt")
        sys.exit(3)
    Path(folder, "proof.part").write_text(json.dumps(found))
    os.replace(f"{folder}/proof.part", f"{folder}/proof.json")


if __name__ == "__main__":
    main(*sys.argv[1:])
