"""What the paths of points show of a net: its folds, crossings and separation, and the rows that a figure draws."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from on_spheres import linear, point_job, scaled
from small import small_job, write_job

from gode_core.integrate import integrate
from gode_core.networks import Network
from gode_core.solvers import parse_solver
from gode_core.trajectories import paths, share_crossing
from pipeline import checkpoint
from pipeline.build import build_network
from pipeline.config import JobConfig
from pipeline.data import load_split
from pipeline.evaluate import judge
from pipeline.experiment import Judging
from pipeline.records import PathRecord, ValidityRecord, read_records
from pipeline.verdicts import NUM_DEPTHS, Geometry, Shares, geometry_of

LIMIT = "dopri5@1e-6"
NOTHING = Geometry(Shares(), [])


def geometry(config: JobConfig, network: Network, own: str, limit: str = LIMIT, num_paths=20, num_drawn=5) -> Geometry:
    split = load_split(config.data, "test", "data")
    judging = Judging((limit,), num_paths=num_paths, num_drawn=num_drawn)
    images = split.images if split.images.is_floating_point() else split.images / 255
    return geometry_of(network, config, parse_solver(own), judging, (images, split.labels), "job")


@pytest.mark.parametrize(
    ("matrix", "folded", "crossing", "step", "flow"),
    [
        ([[-3.0, 0.0], [0.0, 0.0]], 1.0, 0.0, math.log(2), 0.0),
        ([[-1.5, 0.0], [0.0, -1.5]], 0.0, 1.0, math.log(0.5), -1.5),
        ([[0.5, 0.0], [0.0, -0.5]], 0.0, None, math.log(1.5), 0.5),
        ([[0.0, -2.0], [2.0, 0.0]], 0.0, None, math.log(5) / 2, 0.0),
    ],
    ids=["mirrored", "turned about", "a saddle", "a rotation"],
)
def test_a_linear_field_by_hand(matrix, folded, crossing, step, flow):
    """One Euler step is x + A x, the flow exp(A) x; the separation is the log of their largest singular value. A step
    to -x / 2 leads all points through the origin."""
    config = point_job(solver="euler@1")
    shares = geometry(config, linear(config, matrix), "euler@1").shares
    assert (shares.num_paths, shares.share_folded) == (20, folded)
    assert crossing is None or shares.share_crossing == crossing
    assert shares.separation == pytest.approx(step, abs=1e-12)
    assert shares.limit_separation == pytest.approx(flow, abs=1e-4)


def test_fine_steps_neither_fold_nor_stretch_otherwise_than_the_flow():
    config = point_job(solver="euler@512")
    matrix = [[-3.0, 0.0], [0.0, 0.0]]
    shares = geometry(config, linear(config, matrix), "euler@512").shares
    assert (shares.share_folded, shares.share_crossing) == (0.0, 0.0)
    assert shares.separation == pytest.approx(shares.limit_separation, abs=1e-4)


def test_paths_cross_as_counted_by_pairs():
    """Of a real net: of the points that are asked for, under the training solver."""
    config = point_job(solver="euler@4")
    network, points = scaled(config, 1.2), load_split(config.data, "test", "data").images
    shares = geometry(config, network, "euler@4", num_paths=30).shares
    walked = paths(network.fields[0].double(), points[:30].double(), parse_solver("euler@4"))  # type: ignore[arg-type]
    assert 0 < share_crossing(walked) < 1
    assert shares.share_crossing == share_crossing(walked)


@pytest.mark.parametrize(
    ("data", "model", "crossing", "drawn"),
    [
        ({}, {"family": "neural_ode"}, True, True),
        ({}, {"family": "gode", "basis": {"degree": 0, "num_coefficients": 2}}, False, True),
        ({}, {"family": "neural_ode", "time_channel": True}, False, True),
        ({"dimension": 3}, {"family": "neural_ode"}, False, False),
    ],
    ids=["neural ode", "gode", "time channel", "in space"],
)
def test_crossings_are_of_autonomous_fields_in_the_plane(data, model, crossing, drawn):
    """Solutions of another may pass one place at two times; in space lines cross by chance never."""
    config = point_job(data, model, solver="euler@2")
    found = geometry(config, build_network(config), "euler@2")
    assert (found.shares.share_crossing is not None) == crossing
    assert bool(found.drawn) == drawn
    assert None not in (found.shares.share_folded, found.shares.separation, found.shares.limit_separation)


@pytest.mark.parametrize(
    ("data", "model", "own"),
    [
        ({"dimension": 10}, {}, "euler@2"),
        ({}, {"pad_channels": 3}, "euler@2"),
        ({}, {}, "dopri5@1e-3"),
        ({}, {}, "trapezoid@2"),
    ],
    ids=["ten dimensions", "padded", "adaptive", "implicit"],
)
def test_nothing_is_said_of_other_nets(data, model, own):
    """Their steps have no determinants of their own, or act on more than the point."""
    config = point_job(data, model, solver=own)
    assert geometry(config, build_network(config), own) == NOTHING


def test_nothing_is_said_of_images_or_if_no_paths_are_asked_for():
    config = small_job()
    assert geometry(config, build_network(config), "euler@2") == NOTHING
    config = point_job()
    assert geometry(config, build_network(config), "euler@2", num_paths=0, num_drawn=0) == NOTHING
    assert geometry(config, build_network(config), "euler@2", num_drawn=0).drawn == []


@pytest.mark.parametrize("limit", [LIMIT, "rk4@100", "rk4@8", "trapezoid@8"])
@pytest.mark.parametrize("own", ["euler@3", "euler@64", "euler@200"])
def test_rows_of_paths_begin_at_the_point_and_end_where_the_solve_does(own, limit):
    """First all of the training solver, then all of the limit; of many places on a path some are kept."""
    config = point_job(solver=own)
    network = scaled(config, 0.8)
    drawn, split = geometry(config, network, own, limit).drawn, load_split(config.data, "test", "data")
    assert list(dict.fromkeys(row.solver for row in drawn)) == [own, limit]
    points, field = split.images[:5].double(), network.fields[0].double()
    for name in (own, limit):
        num_steps = getattr(parse_solver(name), "num_steps", NUM_DEPTHS)
        rows = [row for row in drawn if row.solver == name]
        assert len(rows) == 5 * (1 + min(num_steps, NUM_DEPTHS))
        ends = integrate(field, points, parse_solver(name)).h1
        for number in range(5):
            path = [row for row in rows if row.path == number]
            depths = [row.depth for row in path]
            assert (depths[0], depths[-1]) == (0.0, 1.0)
            assert all(a < b for a, b in pairwise(depths))
            assert {row.target for row in path} == {split.labels[number].item()}
            assert (path[0].x, path[0].y) == tuple(points[number, 0].tolist())
            near = 1e-4 if name == LIMIT else 1e-12  # its steps end at the places, and so are others
            assert (path[-1].x, path[-1].y) == pytest.approx(ends[number, 0].tolist(), abs=near)


def test_a_place_between_lies_at_its_depth():
    """Of x' = -x: exp(-t) x in the limit, and (1 - 1/200)^n x after n of 200 steps."""
    config = point_job(solver="euler@200")
    for row in (drawn := geometry(config, linear(config, [[-1.0, 0.0], [0.0, -1.0]]), "euler@200").drawn):
        start = next(each for each in drawn if (each.path, each.solver) == (row.path, row.solver))
        by_hand = math.exp(-row.depth) if row.solver == LIMIT else (1 - 1 / 200) ** round(200 * row.depth)
        assert row.x == pytest.approx(by_hand * start.x, rel=1e-4, abs=1e-6)


def test_the_network_is_left_as_it_was():
    """Paths are followed in float64, by a copy."""
    config = point_job()
    network = build_network(config)
    geometry(config, network, "euler@2")
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())


def test_the_stage_follows_the_first_points_of_the_split(tmp_path):
    config = point_job(solver="euler@4")
    network, judging = scaled(config, 0.8), Judging(("euler@4", LIMIT), batch_size=7, num_paths=20, num_drawn=5)
    found, (files, job) = geometry(config, network, "euler@4"), write_job(tmp_path, config)
    checkpoint.save_model(files.model(job), config, network)
    judge(config, job, judging, files, "data", torch.device("cpu"))
    (row,) = read_records(ValidityRecord, files.validity(job, judging.id))
    assert vars(found.shares).items() <= vars(row).items()
    drawn = read_records(PathRecord, files.trajectories(job, judging.id))
    assert [vars(each) | {"job": "job"} for each in drawn] == [vars(each) for each in found.drawn]
