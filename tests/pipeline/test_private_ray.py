"""A Ray of one's own: what it may use, who can reach it, and what is left when it has ended."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline.private_ray import RayFacts, cpus_here, gpus_here, private_ray
from pipeline.ray_node import descendants

# ---------------------------------------------------------------------- what it may use


def machine(root: Path, cgroup: str, **files: str) -> Path:
    """A file system that says in which cgroup this process is, and what is allowed there."""
    for name, text in {"proc/self/cgroup": cgroup, **{f"sys/fs/cgroup/{k}": v for k, v in files.items()}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def sixteen(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))


@pytest.mark.usefixtures("sixteen")
@pytest.mark.parametrize(
    ("cgroup", "files", "cpus"),
    [
        ("0::/a/b\n", {}, 16),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n"}, 16),
        ("0::/a/b\n", {"a/b/cpu.max": "350000 100000\n"}, 3),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n"}, 2),
        ("0::/host/name\n", {"cpu.max": "400000 100000\n"}, 4),  # a container: the name is the host's
        ("0::/a\n", {"a/cpu.max": "50000 100000\n"}, 1),
        ("0::/a\n", {"a/cpu.max": "9900000 100000\n"}, 16),
        ("0::/a\n", {"a/cpu.max": "no numbers"}, 16),
        ("4:cpuset,cpu:/x\n", {"cpu/x/cpu.cfs_quota_us": "300000", "cpu/x/cpu.cfs_period_us": "100000"}, 3),
        ("4:cpu,cpuacct:/x\n", {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, 16),
        ("4:cpu:/x\n", {"cpu/cpu.cfs_quota_us": "500000", "cpu/cpu.cfs_period_us": "100000"}, 5),
        ("4:memory:/x\n", {"cpu/x/cpu.cfs_quota_us": "300000", "cpu/x/cpu.cfs_period_us": "100000"}, 16),
    ],
)
def test_cpus_are_those_of_the_quota(cgroup, files, cpus, tmp_path):
    assert cpus_here(machine(tmp_path, cgroup, **files)) == cpus


def test_cpus_are_those_of_the_affinity(tmp_path):
    mine = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(mine)})
        assert cpus_here(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, mine)


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [(None, None), ("", 0), ("0", 1), ("2,5", 2), ("GPU-1f, GPU-2e", 2), ("-1", 0), ("0,-1,1", 1), ("NoDevFiles", 0)],
)
def test_gpus_are_those_that_cuda_may_see(visible, gpus, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus_here() == gpus


def test_a_long_folder_is_refused_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("x" * 60)))
    with pytest.raises(OSError, match=r"RAY_TMPDIR: .*: too long for Ray's sockets; choose a shorter folder"):
        private_ray().__enter__()


# ---------------------------------------------------------------------- one life


@dataclass
class Life:
    """What was seen while a Ray stood, and after."""

    facts: RayFacts | None = None
    folder: Path = Path()
    modes: dict[str, int] = field(default_factory=dict)
    listens: dict[str, list[str]] = field(default_factory=dict)  # process -> addresses
    hears: dict[str, set[int]] = field(default_factory=dict)  # process -> which of SIGTERM and SIGUSR1
    handler_inside: object = None
    worker: dict[str, str | None] = field(default_factory=dict)
    processes: list[int] = field(default_factory=list)
    after: dict[str, str] = field(default_factory=dict)


OUTSIDE = {"RAY_ADDRESS": "192.0.2.1:6379", "RAY_AUTH_TOKEN": "of-another", "TMPDIR": f"/tmp/{'long-' * 20}"}


@pytest.fixture(scope="module")
def life(tmp_path_factory):
    """One start and end, where the environment leads to another Ray."""
    import ray  # first, by another: it reads of the environment what is there now

    def of_worker() -> dict[str, str | None]:
        names = ("OMP_NUM_THREADS", "RAY_ADDRESS", "RAY_AUTH_TOKEN")
        import pipeline as there

        return {name: os.environ.get(name) for name in names} | {"pipeline": there.__file__}

    above = Path("/tmp") / f"t{os.getpid()}"
    seen, handler = Life(), lambda number, frame: None
    abandoned, held = (above / f"gode-ray-{name}" for name in ("dead", "new"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (OUTSIDE | {"RAY_TMPDIR": str(above)}).items():
            patch.setenv(name, value)
        for folder in (abandoned, held):
            folder.mkdir(parents=True)
            (folder / "lock").touch()
        os.utime(abandoned, (0, 0))
        before, environment = signal.signal(signal.SIGTERM, handler), dict(os.environ)
        others = descendants(os.getpid())  # of other tests: a compiler's, say
        try:
            with private_ray(cpus=1, gpus=0) as seen.facts:
                (seen.folder,) = (folder for folder in above.iterdir() if folder != held)
                seen.modes = {name: stat.S_IMODE((seen.folder / name).stat().st_mode) for name in (".", "token")}
                seen.handler_inside = signal.getsignal(signal.SIGTERM)
                seen.worker = ray.get(ray.remote(num_cpus=1)(of_worker).remote())
                seen.processes = [pid for pid in descendants(os.getpid()) if pid not in others]
                seen.hears, seen.listens = of_each(seen.processes, hears), of_each(seen.processes, listening)
            assert signal.getsignal(signal.SIGTERM) is handler
            seen.after = {k: v for k, v in os.environ.items() if environment.get(k) != v}
            assert dict(os.environ) == environment
        finally:
            signal.signal(signal.SIGTERM, before)
            left = list(above.iterdir())
            for folder in (held, abandoned):
                (folder / "lock").unlink(missing_ok=True)
            for folder in above.iterdir():
                folder.rmdir()
            above.rmdir()
    assert left == [held], "the folder of a dead process is removed, and of one that may just begin it is not"
    return seen


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def of_each(pids: Iterable[int], ask: Callable[[int], Any]) -> dict[str, Any]:
    """By name, of those that have not ended meanwhile."""
    found = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            found[name_of(pid)] = ask(pid)
    return found


def hears(pid: int) -> set[int]:
    """Those of the signals by which a job is asked to end that are not blocked in a process's main thread."""
    rows = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    blocked = int(rows["SigBlk"], 16)
    return {number for number in (signal.SIGTERM, signal.SIGUSR1) if not blocked >> number - 1 & 1}


def lives(pid: int) -> bool:
    """And is not just waiting for its parent to take note of its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def listening(pid: int) -> list[str]:
    """Hexadecimal addresses at which a process accepts connections."""
    sockets = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    rows = [line.split() for kind in ("tcp", "tcp6") for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]]
    return [row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets]


@pytest.mark.slow
def test_it_has_what_it_was_given(life):
    assert life.facts == RayFacts(cpus=1, gpus=0)


@pytest.mark.slow
def test_its_token_and_folder_are_its_users_alone(life):
    assert life.modes == {".": 0o700, "token": 0o600}


@pytest.mark.slow
def test_it_listens_on_the_loopback_alone(life):
    """127.0.0.1, as IPv4 and within IPv6: as /proc writes it."""
    assert sum(map(len, life.listens.values())) >= 3, "nothing listens: this says nothing"
    assert "gcs_server" in life.listens
    assert "raylet" in life.listens
    loopback = {"0100007F", "0000000000000000FFFF00000100007F"}
    assert {address for addresses in life.listens.values() for address in addresses} <= loopback


@pytest.mark.slow
def test_workers_find_the_same_packages_and_no_other_ray(life):
    assert life.worker == {
        "OMP_NUM_THREADS": "1",
        "RAY_ADDRESS": None,
        "RAY_AUTH_TOKEN": None,
        "pipeline": pipeline.__file__,
    }


@pytest.mark.slow
def test_signals_stay_with_who_had_them(life):
    assert life.handler_inside is not None
    assert life.handler_inside.__qualname__.startswith("life")


@pytest.mark.slow
def test_only_its_user_hears_that_the_job_is_to_end(life):
    """SLURM may send it to all processes of a job at once: without Ray nobody could write a checkpoint."""
    assert len(life.hears) >= 4
    assert set().union(*life.hears.values()) == set()
    assert hears(os.getpid()) == {signal.SIGTERM, signal.SIGUSR1}


@pytest.mark.slow
def test_nothing_is_left(life):
    assert not life.folder.exists()
    assert life.after == {}
    end = time.monotonic() + 10
    while left := [pid for pid in life.processes if lives(pid)]:  # what ended in the middle of starting something
        assert time.monotonic() < end, left
        time.sleep(0.05)
