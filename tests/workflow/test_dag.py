"""What Snakemake plans, and how it takes bad input: seconds, since nothing is run."""

import json
import subprocess
import sys
from pathlib import Path

import yaml
from workplace import ROOT, SMALL

from pipeline.company import company_of
from pipeline.experiment import load_experiment
from pipeline.paths import Paths


def planned(output):
    """Rule -> count, from the table of a dry run."""
    lines = output.split("Job stats:")[1].split("Reasons:")[0].splitlines()
    return {words[0]: int(words[1]) for line in lines if len(words := line.split()) == 2 and words[1].isdigit()}


def test_every_job_is_trained_and_judged_once(workplace):
    code, output = workplace.snakemake("-n", "--quiet", "rules")
    assert code == 0, output
    counts = planned(output)
    once = dict.fromkeys(("data", "collect", "report", "publish", "all"), 1)
    assert {k: v for k, v in counts.items() if k not in ("total", "job")} == once | {"train": 6, "evaluate": 6}


def test_a_run_notes_who_shares_a_process_and_a_plan_does_not(workplace):
    """For those who look on: it was said on the command line."""
    paths = Paths(str(workplace.folder / "results"))
    notes = Path(paths.batches("small"))
    for options, noted in ((["-n"], False), ([], True)):
        code, output = workplace.snakemake(*options, "--config", "together=3", "--", "results/data/digits.json")
        assert code == 0, output
        assert notes.exists() == noted
    jobs = load_experiment(SMALL).jobs
    assert len(company_of(load_experiment(SMALL), paths)) == len(jobs)
    assert len(json.loads(notes.read_text())) == len(jobs) / 3


def test_the_default_experiment_plans():
    """As the README says it, from the project's folder."""
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "-n", "--quiet", "rules", "--config", "results=none"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert planned(done.stdout + done.stderr)["train"] == 42


def test_a_misspelt_key_is_one_line_before_any_job(workplace, tmp_path):
    text = SMALL.read_text().replace("width:", "widht:")
    (tmp_path / "bad.yaml").write_text(text)
    code, output = workplace.snakemake(experiment=tmp_path / "bad.yaml")
    assert code != 0
    assert "unknown key `widht`. Did you mean `width`?" in output
    assert "Traceback" not in output
    assert not (tmp_path / "results").exists()


def test_an_unknown_setting_is_one_line(workplace):
    code, output = workplace.snakemake("-n", "--config", "resultz=here")
    assert code != 0
    assert "unknown key `resultz`. Did you mean `results`?" in output
    assert "Traceback" not in output


def test_a_results_folder_that_is_none_is_one_line(workplace):
    (workplace.folder / "results").write_text("a file is in the way")
    code, output = workplace.snakemake()
    assert code != 0
    assert "results: is no folder" in output
    assert "Traceback" not in output


def test_small_yaml_is_what_it_says():
    assert yaml.safe_load(SMALL.read_text())["job"]["train"]["epochs"] <= 3
