"""Ten thousand jobs are planned in seconds, and in the memory of a login node."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]
NUM_JOBS = 10_000
MOST_SECONDS, MOST_BYTES = 20.0, 0.5e9
CHILD = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
output = done.stdout[-2000:] + done.stderr[-2000:]
print(json.dumps([done.returncode, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, output]))
"""


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    raw = yaml.safe_load((ROOT / "tests/workflow/small.yaml").read_text())
    raw["sweep"] = {"train.lr": [1e-5 * (i + 1) for i in range(NUM_JOBS // 10)], "seed": list(range(10))}
    file = tmp_path_factory.mktemp("many") / "many.yaml"
    file.write_text(yaml.safe_dump(raw))
    return file


def measured(*command):
    """Exit code, CPU seconds (the machine may have other work), bytes at the most, output."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", CHILD, *command], env=environment, capture_output=True, text=True)
    return json.loads(done.stdout)


COMMANDS = {
    "snakemake -n": lambda file: [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--dry-run", "--quiet", "all"),
        *("--cores", "2", "--directory", str(file.parent), "--configfile", str(file)),
    ],
    "pipeline.plan": lambda file: [sys.executable, "-m", "pipeline.plan", str(file), "--results", str(file.parent)],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_ten_thousand_jobs_are_planned_in_seconds(many, name):
    code, seconds, peak, output = measured(*COMMANDS[name](many))
    assert code == 0, output
    print(f"\n{name}: {NUM_JOBS:,} jobs in {seconds:.1f} s of CPU time, {peak / 1e6:.0f} MB")
    assert seconds < MOST_SECONDS
    assert peak < MOST_BYTES
