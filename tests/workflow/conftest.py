import pytest
from workplace import Workplace


@pytest.fixture
def workplace(tmp_path):
    return Workplace(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The small experiment, run once, undisturbed."""
    workplace = Workplace(tmp_path_factory.mktemp("finished"))
    code, output = workplace.snakemake()
    assert code == 0, output
    workplace.output = output
    return workplace
