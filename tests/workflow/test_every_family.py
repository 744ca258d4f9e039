"""digits-families.yaml through the whole DAG, with few images and epochs, its trainings as a fleet."""

import csv

import pytest
import yaml
from workplace import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_every_family_goes_from_its_experiment_file_to_the_report(workplace):
    raw = yaml.safe_load((ROOT / "pipeline/experiments/digits-families.yaml").read_text())
    raw["job"]["data"]["num_train"] = 128
    raw["job"]["train"]["epochs"] = 2
    for choice in raw["sweep"]["job"]:
        for phase in choice.get("train", {}).get("phases", ()):
            phase["until"] = 1
    raw["evaluate_with"]["solvers"] = ["euler@8", "ab2@16", "rk4@8"]
    experiment = workplace.folder / "families.yaml"
    experiment.write_text(yaml.safe_dump(raw))
    code, output = workplace.snakemake("--config", "fleet=true", experiment=experiment, seconds=800)
    assert code == 0, output

    with open(workplace.folder / "results/experiments/families/table.csv") as file:
        rows = list(csv.DictReader(file))
    assert {row["status"] for row in rows} == {"ok"}
    solvers: dict[str, list[str]] = {}
    for row in rows:
        solvers.setdefault(row["job"], []).append(row["solver"])
        assert row["num_samples"] == "360"
    assert len(solvers) == len(raw["sweep"]["job"])
    for job, judged in solvers.items():
        own = next(row["train.solver"] for row in rows if row["job"] == job)
        assert judged == ([own] if own.startswith("layers@") else raw["evaluate_with"]["solvers"])
    with open(workplace.folder / "results/experiments/families/weights.csv") as file:
        assert any(row["weight"] == "k of block 0" for row in csv.DictReader(file))
    report = (workplace.folder / "results/experiments/families/report.html").read_text()
    assert all(job in report for job in solvers)
    assert "discrete: between their layers is no ODE" in report
    assert "carried over to" in report
