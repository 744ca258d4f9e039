"""Start an experiment, or take it up again after whatever has happened, and stay beside it until it is done.

    python -m pipeline.resume pipeline/experiments/digits.yaml     # says what will run and why, and goes on
    python -m pipeline.resume x.yaml -n                            # says it, and begins nothing
    python -m pipeline.resume x.yaml --cancel                      # first ends SLURM jobs of a killed Snakemake
    python -m pipeline.resume x.yaml --wait                        # ... or lets them end
    python -m pipeline.resume x.yaml -- --set-threads train=4      # more options for Snakemake

Snakemake does not know SLURM jobs that it submitted before it was killed: started again it would submit them a second
time. This looks first. Then it runs Snakemake, again and again as long as that brings the experiment forward, and ends
one that waits for jobs that are no more.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pipeline import slurm, stage
from pipeline.ahead import how_brief, what_runs
from pipeline.cost import is_spent
from pipeline.experiment import Experiment, load_experiment
from pipeline.paths import DEFAULT_EXPERIMENT, Paths
from pipeline.progress import standing, summary
from pipeline.site import Site, name_of_jobs

log = logging.getLogger(__name__)
PROFILES = {"slurm": ("--workflow-profile", "cluster/slurm"), "local": ("--profile", "cluster/local")}
POLL = 10.0  # seconds between two looks
LOST = 600.0  # seconds without a SLURM job or a process of its own, after which Snakemake waits for nothing
PAUSE = 60.0  # seconds before a failed run is made again (a full queue, say), and between two looks at the budget
MOST_KILLED = 3  # runs of Snakemake, one after the other, that are killed before they bring anything forward
INTERRUPTED = 130  # exit code: Ctrl-C
STILL_RUNNING = 3  # exit code: jobs of a killed Snakemake run on
DRIVERS = ("snakemake", "pipeline.resume")
LOOKS = ("squeue", "sacct", "scontrol", "sinfo")  # children of a Snakemake that only asks SLURM
OWN_SETTINGS = ("results", "data", "device")


class Driver:
    """Snakemake on one experiment, in this folder, on a cluster or on this machine."""

    def __init__(self, file: str, where: str, config: Sequence[str], more: Sequence[str]):
        """config: `key=value`; more: further options. Raises ValueError for a setting among those that is ours."""
        self.where = where
        rest, settings = _without_config(more)
        for setting in settings:
            key = setting.partition("=")[0]
            if key in OWN_SETTINGS:
                raise ValueError(f"--config {setting}: give it to this command, before the `--`, as --{key}")
        # the rest comes first: options that take many words would take those of the rest that are none
        options = [*rest, *PROFILES[where], "--configfile", file]
        options += ["--config", *config, *settings] if config or settings else []
        self.command = [sys.executable, "-m", "snakemake", *options]
        self.name = name_of_jobs(options)
        self.interrupted = self.stopped = False

    def left_behind(self) -> list[slurm.SlurmJob]:
        """SLURM jobs of this experiment that were submitted from this folder and have not ended. Raises Away."""
        named = [job for job in slurm.queue() if job.live and job.name.rpartition("_")[0] == self.name]
        return [job for job in named if os.path.realpath(job.folder) == os.getcwd()]

    def unlock(self) -> None:
        """What a killed Snakemake left locked. Nobody else holds it: that was looked for before."""
        if any(Path(".snakemake/locks").glob("*")):
            log.info("unlocking the folder, which a Snakemake that was killed had locked")
            done = subprocess.run([*self.command, "--unlock"], capture_output=True, text=True)
            if done.returncode:
                raise ValueError(f"`snakemake --unlock` failed: {[*done.stderr.strip().splitlines(), ''][-2:][0]}")

    def run(self, is_spent: Callable[[], bool] = lambda: False) -> int:
        """Once, to its end; the exit code. One that waits for nothing is ended; one whose budget is spent begins no
        more jobs."""
        # a KeyboardInterrupt inside of Popen.wait can leave it locked, and no end is seen any more
        before = signal.signal(signal.SIGINT, lambda *_: setattr(self, "interrupted", True))
        try:
            return self._watch(subprocess.Popen(self.command), is_spent)
        finally:
            signal.signal(signal.SIGINT, before)

    def _watch(self, process: subprocess.Popen, is_spent: Callable[[], bool]) -> int:
        """After Ctrl-C too: the terminal has told Snakemake, whose jobs write checkpoints."""
        seen = asked = time.monotonic()
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(POLL)
            if time.monotonic() - asked > PAUSE:
                asked = time.monotonic()
                if not self.stopped and _surely(is_spent):
                    log.warning("the budget is spent: what runs is finished, and nothing more begun")
                    self.stopped = True
                    process.send_signal(signal.SIGTERM)
            if self._busy(process.pid):
                seen = time.monotonic()
            elif time.monotonic() - seen > LOST:
                log.warning("Snakemake has waited %.0f s for SLURM jobs that are no more: ending it", LOST)
                process.send_signal(signal.SIGKILL)  # asked nicely, it would wait for them first

    def _busy(self, pid: int) -> bool:
        """True unless it surely waits for nothing."""
        if self.where == "local":
            return True
        try:
            return _works(pid) or bool(self.left_behind())
        except OSError:  # SLURM is away; or a thread has ended while its children were asked for
            return True


def _surely(is_spent: Callable[[], bool]) -> bool:
    try:
        return is_spent()
    except (ValueError, OSError) as error:  # half a row, a file system that is away: what runs is not left alone for it
        log.warning("whether the budget is spent is not known (%s); asking again", error)
        return False


def _without_config(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options for Snakemake without `--config`, and the settings of it: given twice, it would take the last alone."""
    rest, settings, follows = [], [], False
    for word in words:
        option, is_whole, value = word.partition("=")
        if option in ("--config", "-C"):
            follows = not is_whole
            settings += [value] if is_whole else []
        else:
            follows = follows and not word.startswith("-")
            (settings if follows else rest).append(word)
    return rest, settings


def _works(pid: int) -> bool:
    """True if a process has children that do more than to ask SLURM, or this kernel does not tell. Raises OSError."""
    lists = list(Path(f"/proc/{pid}/task").glob("*/children"))
    children = [child for each in lists for child in each.read_text().split()]
    return not lists or any(Path(f"/proc/{child}/comm").read_text().strip() not in LOOKS for child in children)


def other_snakemake() -> int | None:
    """The process of a Snakemake, or of another of these, that runs in this folder, on this machine."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = [Path(word).name for word in os.fsdecode((entry / "cmdline").read_bytes()).split("\0")]
            if os.readlink(entry / "cwd") != str(Path.cwd()) or int(entry.name) == os.getpid():
                continue
        except OSError:
            continue
        said = words[:5] if words[0].startswith("python") else words[:1]  # not `screen -S snakemake`
        if any(word in DRIVERS for word in said) and "remote" not in words:
            return int(entry.name)
    return None


def need_alone() -> None:
    """Raises ValueError if another process sees to this folder."""
    if (process := other_snakemake()) is not None:
        raise ValueError(
            f"Snakemake runs in this folder already (process {process}); `python -m pipeline.status` shows it"
        )


def settle(driver: Driver, wait: bool, cancel: bool) -> bool:
    """See to the jobs of a Snakemake that was killed. True if none is left. Raises Away."""
    left = driver.left_behind()
    if not left:
        return True
    print(f"{len(left)} SLURM jobs of this experiment run or wait, and no Snakemake of this machine looks after them:")
    for job in left:
        print(f"  {job.id:>8}  {job.state.lower():<10} {job.nodes or job.reason:<20} {job.comment}")
    if not (wait or cancel):
        print("Started now, Snakemake would submit them again. `--wait` lets them end first, `--cancel` ends them:")
        print("their trainings write checkpoints, and go on from there.")
        return False
    sys.stdout.flush()  # a log file is to show it now
    if cancel:
        slurm.cancel([job.id for job in left])
    wait_for_end(driver)
    return True


def wait_for_end(driver: Driver) -> None:
    """Until no SLURM job is left behind. A controller that is away is asked again: days of work wait for it."""
    said = ""
    while True:
        try:
            left = driver.left_behind()
            if not left:
                return
            what = f"waiting for {len(left)} SLURM jobs to end"
        except slurm.Away as away:
            what = f"SLURM does not answer: {away}; asking again"
        if what != said:
            log.info("%s", what)
        said = what
        time.sleep(POLL)  # SLURM sends no event


def need_shared(results: str, site: Site) -> None:
    """Raises ValueError if a node does not see this folder. Asks for one at once; if none is free, nothing is said."""
    probe = Path(results) / f".seen-{uuid.uuid4().hex[:8]}"
    probe.parent.mkdir(parents=True, exist_ok=True)
    probe.touch()
    places = [str(probe.absolute()), str(Path.cwd()), sys.executable]
    look = "; ".join(f"test -e {shlex.quote(place)} && echo seen || echo hidden" for place in places)
    try:
        found = slurm.try_on_node(look, site.options)
    except slurm.Away as away:  # a node that takes long to start: no reason to begin nothing
        log.info("%s", away)
        found = None
    finally:
        probe.unlink(missing_ok=True)
    answers = (found or "").split()
    if len(answers) != len(places):
        log.info("no node has answered at once: whether nodes see %s is not known", results)
        return
    folder, here, interpreter = answers
    if folder == "hidden":
        raise ValueError(
            f"{probe.parent.absolute()}: the nodes do not see this folder; take one that they share, with `--results`"
        )
    if here == "hidden":
        raise ValueError(f"{Path.cwd()}: the nodes do not see this folder; start from one that they share")
    if interpreter == "hidden":
        raise ValueError(f"{sys.executable}: the nodes do not see this Python; install it on a shared disk")


def go_on(driver: Driver, experiment: Experiment, paths: Paths, sleep: Callable[[float], None] = time.sleep) -> int:
    """Run Snakemake until all is done, or a whole run has brought nothing forward. One that was killed may have had no
    time to: it is run a few times more."""
    before, killed = standing(experiment, paths).progress, 0
    while True:
        driver.unlock()
        code = driver.run(partial(is_spent, experiment, paths))
        after = standing(experiment, paths).progress
        killed = killed + 1 if code < 0 and after <= before else 0
        in_vain = after <= before and not 0 < killed <= MOST_KILLED
        code = code if code >= 0 else 128 - code  # as the shell says it
        if code == 0 or driver.interrupted or driver.stopped or in_vain:
            return code
        how = "but work went forward" if not killed else f"before anything went forward ({killed} of {MOST_KILLED})"
        log.warning("Snakemake ended with exit code %d, %s: again in %.0f s", code, how, PAUSE)
        before = after
        sleep(PAUSE)
        if driver.where == "slurm":
            wait_for_end(driver)
        need_alone()


def main(arguments: argparse.Namespace) -> int:
    try:
        return _main(arguments)
    except KeyboardInterrupt:  # while it waits, not while Snakemake runs
        return INTERRUPTED


def _main(arguments: argparse.Namespace) -> int:
    experiment, paths = load_experiment(arguments.experiment), Paths(arguments.results)
    where = arguments.where or ("slurm" if slurm.installed() else "local")
    config = [f"{key}={value}" for key in OWN_SETTINGS if (value := getattr(arguments, key))]
    driver = Driver(arguments.experiment, where, config, arguments.more)
    need_alone()
    if where == "slurm":
        site = Site.of_user()
        site.check()
        if not settle(driver, arguments.wait and not arguments.dry_run, arguments.cancel and not arguments.dry_run):
            return STILL_RUNNING
        if not arguments.dry_run:
            need_shared(arguments.results, site)
    found = standing(experiment, paths)
    print("\n".join([summary(found), *what_runs(found, paths)]), flush=True)
    if arguments.dry_run:
        return subprocess.run([*driver.command, "--dry-run", *how_brief(found, paths)]).returncode
    return go_on(driver, experiment, paths)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="?", default=DEFAULT_EXPERIMENT, help="an experiment file")
    parser.add_argument("--where", choices=sorted(PROFILES), help="default: slurm where its commands are, else local")
    parser.add_argument("--results", default="results", help="root of the results (default: results)")
    parser.add_argument("--data", default="", help="root of the data sets (default: data)")
    parser.add_argument("--device", default="", help="cpu, cuda ...; default: a GPU if there is one")
    parser.add_argument("--wait", action="store_true", help="let jobs of a killed Snakemake end first")
    parser.add_argument("--cancel", action="store_true", help="end them first; they write checkpoints")
    parser.add_argument("-n", "--dry-run", action="store_true", help="say what would run")
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)  # argparse takes no such words after an option
    parser.set_defaults(more=sys.argv[cut + 1 :])
    del sys.argv[cut:]
    stage.run(main, parser)
