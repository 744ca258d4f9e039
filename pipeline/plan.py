"""Print an experiment's jobs and their cost, before anything is spent; write their config.json files.

python -m pipeline.plan pipeline/experiments/digits.yaml            # what would run, and what it would cost
python -m pipeline.plan pipeline/experiments/digits.yaml --write    # one config.json per job
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from gode_core.solvers import Layers
from pipeline import stage
from pipeline.cost import RuleCost, hours, keep_budget, limits, spent, to_spend
from pipeline.counting import is_guess, training_evals
from pipeline.describe import write_configs
from pipeline.experiment import Budget, Experiment
from pipeline.past import KINDS, DeviceSeconds
from pipeline.paths import DEFAULT_EXPERIMENT, Paths
from pipeline.search_cost import estimate_whole
from pipeline.search_plan import describe_search
from pipeline.winners import load_whole


def describe(experiment: Experiment) -> str:
    """The plan as text: a line a job, and what it comes to; then the search."""
    lines = [f"{experiment.name}: {experiment.question}"]
    if experiment.jobs:
        lines += ["", *_describe_jobs(experiment)]
    if experiment.search is not None:
        lines += ["", *describe_search(experiment.search)]
        lines.append("")
    return "\n".join([*lines, _describe_judging(experiment)])


def _describe_jobs(experiment: Experiment) -> list[str]:
    counted = [(key, config, training_evals(config)) for key, config in experiment.jobs.items()]
    lines = [f"{'field evaluations':>18}  job"]
    for key, config, evals in counted:
        number = "?" if evals is None else ("~" if is_guess(config) else "") + f"{evals:,}"
        lines.append(f"{number:>18}  {key}")
    known = [evals for _, _, evals in counted if evals is not None]
    total = f"{sum(known):,}" + (" and more" if len(known) < len(counted) else "")
    return [
        *lines,
        "",
        f"{len(counted)} jobs, {total} field evaluations in training (forward passes over a batch; `~` is a guess).",
    ]


def _describe_judging(experiment: Experiment) -> str:
    judging = experiment.evaluate_with
    judges = f"with {len(judging.solvers)} solvers: {', '.join(judging.solvers)}"
    discrete = [isinstance(config.train.parsed_solver, Layers) for config in experiment.jobs.values()]
    if any(discrete):
        judges = "by its own layers" if all(discrete) else f"{judges} (discrete nets by their own layers alone)"
    each = "Each" if experiment.jobs else "Each winner"
    return f"{each} is judged on the {judging.split} split {judges}"


def describe_cost(rules: Sequence[RuleCost], root: str) -> list[str]:
    """What each rule has still to spend, on what that rests, and the sum. `~` is a guess."""
    width = max(len(_amount([cost])) for cost in rules)
    lines = ["To be spent:"]
    for cost in rules:
        noun = "trials" if cost.rule == "search" else "jobs"
        jobs = f"{cost.num_jobs:,} {noun}, {cost.num_done:,} done"
        lines.append(f"  {cost.rule:<9} {_amount([cost]):<{width}}  {jobs}{_basis(cost, root)}")
    return [*lines, f"  {'in all':<9} {_amount(rules)}"]


def _amount(rules: Sequence[RuleCost]) -> str:
    """`1.5 GPU-hours + ~3 core-minutes`."""
    parts = []
    for device, name in zip(KINDS, ("GPU", "core")):
        known, guessed = to_spend(rules, device)
        amount = known + guessed
        if amount:
            number, unit = (hours(amount), "hours") if amount >= 1 else (f"{60 * amount:.2g}", "minutes")
            parts.append(f"{'~' if guessed else ''}{number} {name}-{unit}")
    unknown = any(cost.num_unknown for cost in rules)
    return " + ".join(parts or ["nothing"]) + (" and more" if unknown else "")


def _basis(cost: RuleCost, root: str) -> str:
    if cost.num_done == cost.num_jobs:
        return ""
    if not cost.past:
        return f"; a guess: nothing like it in {root}"
    guess = any(to_spend([cost], device)[1] for device in KINDS)
    return f"; by past jobs in {root} ({len(cost.past):,})" + (", the rest a guess" if guess else "")


def describe_budget(budget: Budget, used: DeviceSeconds, rules: Sequence[RuleCost]) -> list[str]:
    """A line for each limit: what is spent, and what is left."""
    lines = []
    for device, unit, limit in limits(budget):
        known, guessed = to_spend(rules, device)
        left = limit - used.hours(device) - known - guessed
        rest = f"{'~' if guessed else ''}{hours(abs(left))} {'left' if left >= 0 else 'too few'}"
        lines.append(f"  {'budget':<9} {hours(limit)} {unit}, {hours(used.hours(device))} spent; then {rest}")
    return lines


def main(arguments: argparse.Namespace) -> None:
    paths = Paths(arguments.results)
    experiment = load_whole(arguments.experiment, paths)
    if arguments.write:
        write_configs(experiment, paths)
        logging.info("%d jobs: each has its config.json in %s/jobs", len(experiment.jobs), arguments.results)
        return
    print(describe(experiment), end="\n\n")
    rules = estimate_whole(experiment, paths, arguments.device)
    print("\n".join(describe_cost(rules, paths.root)))
    if experiment.budget is not None:
        used = spent(experiment, paths)
        print("\n".join(describe_budget(experiment.budget, used, rules)))
        if warning := keep_budget(experiment.budget, used, rules, paths.root, arguments.experiment):
            logging.warning("%s", warning)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="?", default=DEFAULT_EXPERIMENT, help="an experiment file")
    parser.add_argument("--write", action="store_true", help="write config.json of every job")
    parser.add_argument("--results", default="results", help="root of the results (default: results)")
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto (the default): what past jobs ran on"
    )
    stage.run(main, parser)
