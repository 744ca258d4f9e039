import os
import signal

import pytest
import torch
from stand_in import StandIn

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def hears_ctrl_c():
    """A shell without job control starts what is in the background deaf to it, and programs inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def tiny(tmp_path, tmp_path_factory, monkeypatch):
    """Two jobs, not yet published."""
    from tiny import Tiny, empty_database  # here: it imports mlflow, which most tests need not wait for

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Tiny(tmp_path, empty_database(tmp_path_factory.getbasetemp()))


@pytest.fixture
def once(tmp_path_factory, monkeypatch):
    """Two jobs, published without a disturbance; not to be changed."""
    from tiny import published_once

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return published_once(tmp_path_factory.getbasetemp())


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A SLURM that says what the test tells it."""
    slurm = StandIn(tmp_path / "slurm")
    monkeypatch.setenv("PATH", str(slurm.bin), prepend=os.pathsep)
    return slurm


@pytest.fixture
def no_slurm(tmp_path, monkeypatch):
    """A machine without SLURM's commands, whatever it has."""
    monkeypatch.setenv("PATH", str(tmp_path))
