"""What cannot work is said in one line, before any job is submitted, by a real SLURM."""

import sys

import pytest
from campaign import EXPERIMENT, SITE, Campaign

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(120, func_only=True)]

RESUME = [sys.executable, "-m", "pipeline.resume", "x.yaml", "--where", "slurm"]
WRONG = {
    "a partition that does not exist": ("partition: mian", "partition: `mian` is none here. Did you mean `main`?"),
    "an account, where none are kept": ("account: me", "account: no database of accounts answers here"),
    "a feature that no node has": ("constraint: a100", "SLURM would not take a job like this"),
    "more GPUs than a node has": ("gres: gpu:99", "SLURM would not take a job like this"),
    "more memory than a node has": ("train: {minutes: 5, memory_mb: 900000}", "SLURM would not take a job like this"),
    "an option that is none": ("extra: --exlusive", "unrecognized option"),
}


def said(campaign):
    """The one line of a resume that begins nothing."""
    done = campaign.run(*RESUME)
    assert done.returncode not in (0, 3)
    (line,) = [line for line in (done.stdout + done.stderr).splitlines() if "error" in line]
    assert "Traceback" not in done.stderr
    return line


@pytest.mark.parametrize("kind", WRONG)
def test_a_site_that_cannot_work_is_refused(cluster, tmp_path, kind):
    line, words = WRONG[kind]
    campaign = Campaign(tmp_path, EXPERIMENT, cluster.environment, line + "\n")
    before = cluster.squeue()
    error = said(campaign)
    assert words in error
    assert "site.yaml" in error
    assert cluster.squeue() == before


@pytest.mark.parametrize("place", ["results", "."])
def test_a_folder_that_nodes_do_not_share_is_refused(cluster, tmp_path, place):
    campaign = Campaign(tmp_path, EXPERIMENT, cluster.environment, SITE)
    hidden = tmp_path / place
    hidden.mkdir(exist_ok=True)
    before = {row.name for row in cluster.squeue()}
    for node in cluster.nodes:
        cluster.hide(node, hidden)
    try:
        error = said(campaign)
    finally:
        for node in cluster.nodes:
            cluster.show(node, hidden)
    assert "the nodes do not see this folder" in error
    assert not [row for row in cluster.squeue() if row.name not in before and row.name.startswith("gode-")]
