"""A SLURM for the tests of this folder: `pytest -m slurm tests/slurm`, as root.

Where there can be none they are skipped, with the reason; with GODE_REQUIRE_SLURM=1 (as in .ci/run) Debian's packages
are installed if they are missing, and what is still in the way is a failure.
"""

import os
import sys
from collections import defaultdict
from contextlib import ExitStack

import pytest
from campaign import EXPERIMENT, Campaign
from daemons import Unavailable

from cluster import Cluster
from pipeline.describe import write_configs

REQUIRED = os.environ.get("GODE_REQUIRE_SLURM") == "1"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """Four nodes, up for the whole session."""
    cluster = Cluster(tmp_path_factory.mktemp("slurm"), nodes=4, install=REQUIRED)
    try:
        cluster.up()
    except Unavailable as reason:
        (pytest.fail if REQUIRED else pytest.skip)(f"no SLURM here: {reason}")
    yield cluster
    cluster.down()


@pytest.fixture(autouse=True)
def whole(request):
    """Every test begins with nodes that take jobs, and with no job of a former test."""
    if "cluster" in request.fixturenames:
        cluster = request.getfixturevalue("cluster")
        cluster.tidy()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """What the trainings of EXPERIMENT leave on this machine alone, where nothing happens to them. One process for the
    three of each seed, which it trains one after the other."""
    campaign = Campaign(tmp_path_factory.mktemp("undisturbed"), EXPERIMENT, os.environ)
    write_configs(campaign.experiment, campaign.paths)
    train, of_seed = [sys.executable, "-m", "pipeline.train", "--device", "cpu"], defaultdict(list)
    for job, config in campaign.experiment.jobs.items():
        of_seed[config.seed].append(campaign.paths.config(job))
    with ExitStack() as all_of_them:
        processes = [all_of_them.enter_context(campaign.started(*train, *jobs)) for jobs in of_seed.values()]
        for process in processes:
            campaign.finish(process, 400)
    campaign.assert_counted_once()
    files = campaign.files()
    assert len(files) == 4 * 6
    return files
