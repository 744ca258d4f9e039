"""The small experiment as a DAG: again, with more solvers, after Ctrl-C, after kill -9 of Snakemake and of a job."""

import os
import signal
import time
from pathlib import Path

import pytest
from test_dag import planned
from workplace import SMALL, Workplace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LONG = SMALL.read_text().replace("epochs: 3", "epochs: 60").replace("seed: [0, 1]", "seed: [0]")
TRAIN = ("--until", "train")  # what comes after it is no different in the longer experiment


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The trainings of the longer experiment."""
    workplace = Workplace(tmp_path_factory.mktemp("undisturbed"))
    code, output = workplace.snakemake(*TRAIN, experiment=long_experiment(workplace))
    assert code == 0, output
    return {name: workplace.files(name) for name in ("model.safetensors", "training.jsonl", "weights.jsonl")}


def long_experiment(workplace):
    path = workplace.folder / "long.yaml"
    path.write_text(LONG)
    return path


def wait_for_epochs(workplace, process, count=1):
    """Until `count` trainings have logged an epoch: an event in the logs, awaited with a deadline."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        logs = list(workplace.folder.glob("results/logs/train/*.log"))
        if sum("epoch 2/" in log.read_text() for log in logs) >= count:
            return
        time.sleep(0.05)
    raise AssertionError(process.communicate()[1] if process.poll() is not None else "no training began in time")


def trainings(workplace):
    """Process ids of the trainings that run below this working directory, read from /proc."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            here = os.readlink(entry / "cwd") == str(workplace.folder)
        except OSError:
            continue
        if b"pipeline.train" in words and here and b"bash" not in words[0]:
            found.append(int(entry.name))
    return found


def goes_on(workplace, undisturbed, experiment, unlock=False):
    """The same command again ends with the files of an undisturbed run, bit for bit."""
    if unlock:
        code, output = workplace.snakemake("--unlock", experiment=experiment)
        assert code == 0, output
    code, output = workplace.snakemake("--rerun-incomplete", *TRAIN, experiment=experiment)
    assert code == 0, output
    for name, files in undisturbed.items():
        assert workplace.files(name) == files


def test_finished_says_where_to_look_and_has_nothing_to_do(finished):
    assert "The report: results/experiments/small/report.html" in finished.output
    assert "mlflow ui --backend-store-uri" in finished.output
    code, output = finished.snakemake()
    assert code == 0
    assert "Nothing to be done" in output
    report = (finished.folder / "results/experiments/small/report.html").read_text()
    assert "Does the whole way work" in report
    assert len(finished.files("model.safetensors")) == 6


def test_one_solver_more_trains_nothing(finished, tmp_path):
    text = SMALL.read_text().replace("[euler@2,", "[midpoint@3, euler@2,")
    more = tmp_path / "small.yaml"
    more.write_text(text)
    code, output = finished.snakemake("-n", "--quiet", "rules", experiment=more)
    assert code == 0
    counts = planned(output)
    assert "train" not in counts
    assert counts["evaluate"] == 6


def test_one_seed_more_trains_only_it(finished, tmp_path):
    more = tmp_path / "small.yaml"
    more.write_text(SMALL.read_text().replace("seed: [0, 1]", "seed: [0, 1, 2]"))
    before = finished.files("model.safetensors")
    code, output = finished.snakemake("-n", "--quiet", "rules", experiment=more)
    assert code == 0
    assert planned(output)["train"] == 3
    assert finished.files("model.safetensors") == before


def test_device_and_data_folder_are_no_reason_to_run_again(finished):
    code, output = finished.snakemake("-n", "--config", "device=cuda", "data=elsewhere")
    assert code == 0
    assert "Nothing to be done" in output


def test_snakemakes_own_report_works(finished):
    code, output = finished.snakemake("--report", finished.folder / "own.html")
    assert code == 0, output
    assert (finished.folder / "own.html").stat().st_size > 100_000


def test_ctrl_c(workplace, undisturbed):
    experiment = long_experiment(workplace)
    process = workplace.start(*TRAIN, experiment=experiment)
    wait_for_epochs(workplace, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    process.communicate(timeout=60)
    assert not trainings(workplace)
    assert list(workplace.folder.glob("results/jobs/*/state/resume.pt"))
    goes_on(workplace, undisturbed, experiment)


def test_kill_9_of_snakemake(workplace, undisturbed):
    """Its trainings notice, write a checkpoint and leave; --unlock is what Snakemake itself needs."""
    experiment = long_experiment(workplace)
    process = workplace.start(*TRAIN, experiment=experiment)
    wait_for_epochs(workplace, process)
    running = trainings(workplace)
    assert running
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60
    while trainings(workplace) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not trainings(workplace)
    assert list(workplace.folder.glob("results/jobs/*/state/resume.pt"))
    goes_on(workplace, undisturbed, experiment, unlock=True)


def test_kill_9_of_a_job(workplace, undisturbed):
    experiment = long_experiment(workplace)
    process = workplace.start("--keep-going", *TRAIN, experiment=experiment)
    wait_for_epochs(workplace, process)
    os.kill(trainings(workplace)[0], signal.SIGKILL)
    process.communicate(timeout=280)
    assert process.returncode != 0
    finished = workplace.files("model.safetensors")
    assert 0 < len(finished) < 3
    goes_on(workplace, undisturbed, experiment)
