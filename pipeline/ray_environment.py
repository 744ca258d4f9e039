"""What a Ray of ours finds in the environment, on one machine or on many; and what would lead it to another one."""

from __future__ import annotations

import importlib
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STORE = 100_000_000  # bytes of Ray's object store: trainings pass files; by default it takes a share of all memory
PACKAGES = Path(__file__).resolve().parents[1]
BEYOND = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # 0, on every system: the loopback is its only address
FOREIGN = (
    *("RAY_ADDRESS", "RAY_NAMESPACE", "RAY_TMPDIR", BEYOND),
    *("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"),
)
OF_RAY = "PYTHONBREAKPOINT"  # which it sets, and leaves
SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a worker without a GPU of its own hides none: as Ray will do it
    "RAY_gcs_rpc_server_reconnect_timeout_s": "20",  # where its centre dies, all end with it
}
ON_ONE_MACHINE = {BEYOND: "0"}
ON_NODES = {
    # A node that falls silent is given up after some seconds. By default it takes a minute, and calls to it hang.
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
    "RAY_grpc_client_keepalive_time_ms": "2000",
    "RAY_grpc_client_keepalive_timeout_ms": "2000",
    "RAY_enable_metrics_collection": "0",
    "RAY_memory_monitor_refresh_ms": "0",  # it may look at the node's memory, where others are; SLURM limits the job's
}


def write_token(folder: Path) -> Path:
    """The file of a new one, for its user alone."""
    file = folder / "token"
    with open(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as out:
        out.write(secrets.token_hex(32))
    return file


@contextmanager
def ray_environment(token_file: str | Path, more: Mapping[str, str]) -> Iterator[None]:
    """Of this process and all that it starts, workers among them, however this process came to its packages. In the
    end it is what it was. `more`: ON_ONE_MACHINE or ON_NODES."""
    before = dict(os.environ)
    path = [before.get("PYTHONPATH", "")] if before.get("PYTHONPATH") else []
    ours = (
        SETTINGS
        | dict(more)
        | {
            "RAY_AUTH_TOKEN_PATH": str(token_file),
            "PYTHONPATH": os.pathsep.join([str(PACKAGES), *path]),
            "OMP_NUM_THREADS": before.get("OMP_NUM_THREADS", "1"),  # Ray places several workers on a node
        }
    )
    for name in FOREIGN:
        os.environ.pop(name, None)
    os.environ.update(ours)
    _read_again()
    try:
        yield
    finally:
        for name in {*ours, *FOREIGN, OF_RAY}:
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]
        _read_again()


def _read_again() -> None:
    """Ray reads some of it once, when it is imported: by whomever, and for whatever Ray."""
    raylet: Any = importlib.import_module("ray._raylet")
    constants: Any = importlib.import_module("ray._private.ray_constants")
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()
    constants.ENABLE_RAY_CLUSTER = os.environ.get(BEYOND) != "0"
