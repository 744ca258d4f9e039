"""How models are judged has a name of its own, and a solver that stands for h -> 0."""

from __future__ import annotations

import pytest

from pipeline.config import digest
from pipeline.experiment import Judging


def test_judging_has_one_id_however_its_solvers_are_written():
    assert Judging(("euler@04", "dopri5@0.00001")).id == Judging(("euler@4", "dopri5@1e-5")).id
    assert Judging(("euler@04",)).solvers == ("euler@4",)


def test_what_came_later_to_judging_leaves_its_id_alone_at_its_default():
    """So that finished evaluations keep their files."""
    solvers = ("euler@4", "dopri5@1e-5")
    before = {"solvers": list(solvers), "split": "test", "batch_size": 1000, "max_steps": 1000}
    assert Judging(solvers).id == digest(before)


@pytest.mark.parametrize(
    ("solvers", "finest"),
    [
        (("rk4@100", "dopri5@1e-3", "dopri5@1e-5", "euler@500"), "dopri5@1e-5"),
        (("dopri5@1e-5", "bosh3@1e-5"), "bosh3@1e-5"),
        (("dopri5@rtol=1e-5,atol=1e-3", "bosh3@1e-4"), "bosh3@1e-4"),
        (("euler@500", "rk4@4", "midpoint@22"), "euler@500"),
        (("euler@255", "rk4@4", "midpoint@15"), "rk4@4"),
        (("euler@255", "rk4@3", "midpoint@16"), "midpoint@16"),
        (("euler@8", "trapezoid@5"), "trapezoid@5"),
        ((), ""),
    ],
)
def test_the_finest_solver_stands_for_the_limit_unless_another_is_named(solvers, finest):
    assert Judging(solvers).finest == finest
    for solver in solvers:
        assert Judging(solvers, limit=solver).finest == solver


def test_a_limit_has_one_name_however_it_is_written():
    assert Judging(("euler@4", "dopri5@1e-5"), limit="dopri5@0.00001").finest == "dopri5@1e-5"
