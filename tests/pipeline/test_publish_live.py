"""Publishing while jobs run, while others publish, and where nothing can be published."""

import contextlib
import fcntl
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tiny import attempt, files_below, shown

from pipeline.paths import Paths
from pipeline.publish import follow, publish
from pipeline.records import AttemptRecord, TrainingRecord, append_record, read_records, write_records
from pipeline.target import Target, alone


def test_a_run_grows_with_its_training(tiny, once):
    job = tiny.jobs[1]
    attempts = read_records(AttemptRecord, tiny.paths.attempts(job))
    training, model = (Path(path(job)).read_bytes() for path in (tiny.paths.training, tiny.paths.model))
    tiny.unfinish(job, rows=1)
    os.utime(tiny.paths.config(job), (1767322860, 1767322860))  # when the attempt started
    ids = set()
    for rows, following, outcome, status in [
        (1, True, None, "RUNNING"),
        (2, True, None, "RUNNING"),
        (2, False, None, "KILLED"),
        (3, False, "failed", "FAILED"),
        (3, False, "interrupted", "KILLED"),
        (3, True, None, "RUNNING"),
    ]:
        (tiny.folder / "training.jsonl").write_bytes(training)
        write_records(
            tiny.paths.training_so_far(job), read_records(TrainingRecord, tiny.folder / "training.jsonl")[:rows]
        )
        if outcome:
            append_record(tiny.paths.attempts(job), attempt(job, attempts[0].started, outcome))
        tiny.publish(following=following)
        run = tiny.runs()[job]
        ids.add(run.info.run_id)
        assert (run.info.status, tiny.runs()["tiny"].info.status) == (status, status)
        history = tiny.client.get_metric_history(run.info.run_id, "train_loss")
        assert len(history) == rows
        assert "diverged" not in run.data.tags
    Path(tiny.paths.training_so_far(job)).unlink()
    Path(tiny.paths.training(job)).write_bytes(training)
    Path(tiny.paths.model(job)).write_bytes(model)
    write_records(tiny.paths.attempts(job), attempts)
    tiny.publish()
    assert {tiny.runs()[job].info.run_id} == ids
    assert shown(tiny) == shown(once)


class Watched:
    """Stands for a pass of `follow`: what each one does, in turn."""

    def __init__(self, *steps):
        self.steps, self.passes = list(steps), 0

    def __call__(self):
        self.passes += 1
        step = self.steps.pop(0)
        if isinstance(step, Exception):
            raise step
        step()


def test_follow_ends_when_all_is_judged(tiny):
    job = tiny.jobs[0]
    evaluation = Path(tiny.paths.evaluation(job, tiny.experiment.evaluate_with.id))
    content = evaluation.read_bytes()
    evaluation.unlink()
    failed = OSError("the server starts again")
    once = Watched(lambda: None, failed, lambda: evaluation.write_bytes(content))
    follow(once, tiny.experiment, tiny.paths, threading.Event(), 0)
    assert once.passes == 3


def test_follow_ends_when_asked_or_when_it_never_worked(tiny):
    Path(tiny.paths.model(tiny.jobs[0])).unlink()
    stop = threading.Event()
    once = Watched(stop.set)
    follow(once, tiny.experiment, tiny.paths, stop, 1e9)
    assert once.passes == 1
    with pytest.raises(OSError, match="no such server"):
        follow(Watched(OSError("no such server")), tiny.experiment, tiny.paths, threading.Event(), 0)


@pytest.mark.slow
def test_follow_ended_by_a_signal_leaves_nothing_running(tiny):
    """The whole command: it shows a job as running while it watches, and not after."""
    tiny.unfinish(tiny.jobs[1], rows=1)
    command = [sys.executable, "-m", "pipeline.publish", str(tiny.source), "--results", tiny.paths.root]
    process = subprocess.Popen(
        [*command, "--follow", "--seconds", "0.1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    query = "SELECT status FROM runs WHERE name = ?"
    deadline = time.monotonic() + 60
    status = None
    while status != ("RUNNING",) and time.monotonic() < deadline and process.poll() is None:
        with contextlib.closing(sqlite3.connect(tiny.database)) as database:
            status = database.execute(query, (tiny.jobs[1],)).fetchone()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (status, process.returncode) == (("RUNNING",), 0), err
    assert out.startswith("mlflow ui --backend-store-uri 'sqlite:///")
    assert {name: run.info.status for name, run in tiny.runs().items()} == {
        "tiny": "KILLED",
        tiny.jobs[0]: "FINISHED",
        tiny.jobs[1]: "KILLED",
    }


def test_asked_to_stop_it_stops_between_two_jobs(tiny, once):
    answers = iter([False, True])
    assert tiny.publish(should_stop=lambda: next(answers)) is None
    assert {run.info.status for run in tiny.runs().values()} == {"FINISHED"}
    assert len(tiny.runs()) == 2
    assert not Path(tiny.paths.published("tiny")).exists()
    tiny.publish()
    assert shown(tiny) == shown(once)


def test_one_writer_at_a_time(tiny):
    lock = Path(tiny.paths.mlflow_artifacts).with_suffix(".lock")
    with alone(tiny.paths), open(lock) as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with open(lock) as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # free again


def test_what_cannot_be_published_is_refused_in_one_sentence(tiny, tmp_path):
    elsewhere = Paths(str(tmp_path / "other results"))
    with pytest.raises(ValueError, match="no job of tiny was started"):
        publish(tiny.experiment, tiny.source, elsewhere, Target.of(None, elsewhere))
    assert not Path(elsewhere.root).exists()
    tiny.publish()
    shutil.copytree(tiny.folder, elsewhere.root)
    with pytest.raises(ValueError, match=r"made for files in .*my%20results.*delete this database"):
        publish(tiny.experiment, tiny.source, elsewhere, Target.of(None, elsewhere))
    tiny.client.delete_experiment(tiny.runs()["tiny"].info.experiment_id)
    with pytest.raises(ValueError, match="deleted in MLflow; restore it"):
        tiny.publish()


def test_a_dead_server_is_one_line_within_seconds_and_touches_nothing(tiny):
    before = files_below(tiny.folder)
    started = time.monotonic()
    with pytest.raises(OSError, match=r"MLflow at http://127.0.0.1:9: no answer.*--tracking-uri") as caught:
        tiny.publish("http://ann:secret@127.0.0.1:9")  # 9: the port `discard`, which nobody serves
    assert time.monotonic() - started < 20
    assert "secret" not in str(caught.value)
    assert {k: v for k, v in files_below(tiny.folder).items() if not k.endswith(".lock")} == before


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("http://ann:se/cr@et@host:5000/x?token=secret", "http://host:5000/x"),
        ("postgresql://ann:secret@host/db?password=secret", "postgresql://host/db"),
        ("https://host", "https://host"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
    ],
)
def test_no_password_is_shown(uri, said):
    target = Target.of(uri, Paths())
    assert target.shown == said
    assert "secret" not in target.farewell("1")


def test_the_farewell_is_a_command_that_a_shell_understands(tiny):
    target = Target.of(None, tiny.paths)
    words = subprocess.check_output(["bash", "-c", f"printf '%s|' {target.farewell('1').partition('    ')[0]}"])
    assert words.decode().split("|")[:4] == ["mlflow", "ui", "--backend-store-uri", f"sqlite:///{tiny.database}"]


def test_the_address_comes_from_the_option_then_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host")
    monkeypatch.chdir(tmp_path)
    assert Target.of("http://option", Paths()) == Target("http://option", None, False)
    assert Target.of(None, Paths()) == Target("http://host", None, False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    place = (tmp_path / "results" / "mlartifacts").as_uri()
    assert Target.of(None, Paths()) == Target(f"sqlite:///{tmp_path}/results/mlflow.db", place, True)
    assert Target.of("sqlite:///x.db", Paths()).artifacts == place
