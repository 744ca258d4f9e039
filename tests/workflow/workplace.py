"""Snakemake as a user runs it, in a process of its own and a working directory of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SMALL = ROOT / "tests/workflow/small.yaml"


class Workplace:
    """A working directory with the project's Snakefile; `results` lies in it."""

    def __init__(self, folder: Path):
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "SNAKEMAKE_"))}
        self.folder = folder
        self.environment = clean | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def command(self, *options, experiment=SMALL, cores=2):
        return [
            *(sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", str(cores)),
            *("--directory", str(self.folder), "--configfile", str(experiment)),
            *map(str, options),
        ]

    def snakemake(self, *options, seconds=500, **how):
        """(exit code, all output)."""
        command = self.command(*options, **how)
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=seconds)
        return done.returncode, done.stdout + done.stderr

    def start(self, *options, **how):
        """Running, in a process group of its own, as a terminal starts it: it hears Ctrl-C, though these tests may be
        in the background of a shell that makes those deaf to it."""
        return subprocess.Popen(
            ["env", "--default-signal=INT", *self.command(*options, **how)],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def files(self, pattern):
        """Name -> bytes of the jobs' files of that name."""
        return {str(p.relative_to(self.folder)): p.read_bytes() for p in self.folder.glob(f"results/jobs/*/{pattern}")}
