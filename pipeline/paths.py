"""Where every file lies. No other module spells a path.

Under one root (`results/` unless told otherwise):

    jobs/<job>/config.json  model.safetensors  training.jsonl  decisions.jsonl  weights.jsonl
               evaluation-<judging>.jsonl  validity-<judging>.jsonl  trajectories-<judging>.jsonl
    jobs/<job>/state/       resume.pt, training.jsonl (so far), attempts.jsonl, lease.json (while it is trained),
                            killed-*.json (whose attempt is still to be recorded); undeclared, since Snakemake
                            deletes what a failed rule declares
    experiments/<name>/     table.csv, training.csv, decisions.csv, weights.csv, validity.csv, trajectories.csv,
                            report.html, figures/, published.json
    experiments/<name>/     batches.json (which jobs share a process in the run that was started last)
    experiments/<name>/     search-<result>.json, trials.csv, trial_training.csv, where it has a search, and
                            collected-<result> (the tables are of that search)
    searches/<search>/      trials.jsonl (what was tried, and what became of it); lease.json, stop, tune/
                            while it runs; undeclared, like the state of a job
    batches/<batch>.trained, <batch>-<judging>.judged
                            all jobs of one process are trained, judged
    data/<name>.json        the data set was seen, whole
    logs/<rule>/<job>.log
    mlflow.db, mlartifacts/, mlartifacts.lock
                            what `publish` makes of all this; can be deleted and made again
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DEFAULT_EXPERIMENT = "pipeline/experiments/digits.yaml"


@dataclass(frozen=True)
class Paths:
    """Paths as text; `job` may be a wildcard in braces."""

    root: str = "results"

    @staticmethod
    def of_config(path: str) -> tuple[Paths, str]:
        """The root and the job of a config.json. Raises ValueError for a file elsewhere."""
        folder = Path(path).parent
        if Path(path).name != "config.json" or folder.parent.name != "jobs":
            raise ValueError(f"{path}: a job's config is <results>/jobs/<job>/config.json")
        return Paths(str(folder.parent.parent)), folder.name

    def config(self, job: str) -> str:
        return f"{self.root}/jobs/{job}/config.json"

    def model(self, job: str) -> str:
        return f"{self.root}/jobs/{job}/model.safetensors"

    def training(self, job: str) -> str:
        return f"{self.root}/jobs/{job}/training.jsonl"

    def evaluation(self, job: str, judging: str) -> str:
        return f"{self.root}/jobs/{job}/evaluation-{judging}.jsonl"

    def validity(self, job: str, judging: str) -> str:
        return f"{self.root}/jobs/{job}/validity-{judging}.jsonl"

    def trajectories(self, job: str, judging: str) -> str:
        return f"{self.root}/jobs/{job}/trajectories-{judging}.jsonl"

    def decisions(self, job: str) -> str:
        return f"{self.root}/jobs/{job}/decisions.jsonl"

    def weights(self, job: str) -> str:
        return f"{self.root}/jobs/{job}/weights.jsonl"

    def trained(self, job: str) -> list[str]:
        """All that `train` declares."""
        return [self.model(job), self.training(job), self.decisions(job), self.weights(job)]

    def judged(self, job: str, judging: str) -> list[str]:
        """All that `evaluate` declares."""
        return [self.evaluation(job, judging), self.validity(job, judging), self.trajectories(job, judging)]

    def state(self, job: str) -> str:
        return f"{self.root}/jobs/{job}/state"

    def resume(self, job: str) -> str:
        return f"{self.state(job)}/resume.pt"

    def training_so_far(self, job: str) -> str:
        return f"{self.state(job)}/training.jsonl"

    def attempts(self, job: str) -> str:
        return f"{self.state(job)}/attempts.jsonl"

    def lease(self, job: str) -> str:
        return f"{self.state(job)}/lease.json"

    def batch_trained(self, batch: str) -> str:
        return f"{self.root}/batches/{batch}.trained"

    def batch_judged(self, batch: str, judging: str) -> str:
        return f"{self.root}/batches/{batch}-{judging}.judged"

    def data(self, name: str) -> str:
        return f"{self.root}/data/{name}.json"

    def log(self, rule: str, name: str) -> str:
        return f"{self.root}/logs/{rule}/{name}.log"

    def experiment(self, name: str) -> str:
        return f"{self.root}/experiments/{name}"

    def table(self, name: str) -> str:
        return f"{self.experiment(name)}/table.csv"

    def curves(self, name: str) -> str:
        return f"{self.experiment(name)}/training.csv"

    def weight_paths(self, name: str) -> str:
        return f"{self.experiment(name)}/weights.csv"

    def decision_table(self, name: str) -> str:
        return f"{self.experiment(name)}/decisions.csv"

    def verdicts(self, name: str) -> str:
        return f"{self.experiment(name)}/validity.csv"

    def trajectory_table(self, name: str) -> str:
        return f"{self.experiment(name)}/trajectories.csv"

    def found(self, name: str, result: str) -> str:
        """What a search has come to."""
        return f"{self.experiment(name)}/search-{result}.json"

    def collected(self, name: str, result: str) -> str:
        """The mark that the tables hold what that search has come to."""
        return f"{self.experiment(name)}/collected-{result}"

    def batches(self, name: str) -> str:
        return f"{self.experiment(name)}/batches.json"

    def trials(self, search: str) -> str:
        return f"{self.root}/searches/{search}/trials.jsonl"

    def search_lease(self, search: str) -> str:
        return f"{self.root}/searches/{search}/lease.json"

    def search_stop(self, search: str) -> str:
        return f"{self.root}/searches/{search}/stop"

    def search_scratch(self, search: str) -> str:
        """What Ray Tune writes while it runs; deleted in the end."""
        return f"{self.root}/searches/{search}/tune"

    def trial_table(self, name: str) -> str:
        return f"{self.experiment(name)}/trials.csv"

    def trial_curves(self, name: str) -> str:
        return f"{self.experiment(name)}/trial_training.csv"

    def report(self, name: str) -> str:
        return f"{self.experiment(name)}/report.html"

    def figures(self, name: str) -> str:
        return f"{self.experiment(name)}/figures"

    def published(self, name: str) -> str:
        return f"{self.experiment(name)}/published.json"

    @property
    def mlflow(self) -> str:
        """The default tracking URI."""
        return f"sqlite:///{self.root}/mlflow.db"

    @property
    def mlflow_artifacts(self) -> str:
        return f"{self.root}/mlartifacts"
