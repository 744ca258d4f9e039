import pytest
import torch

torch.set_num_threads(1)


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
