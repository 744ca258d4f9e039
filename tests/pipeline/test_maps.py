"""The figures of verdicts: what stands where. Numbers are those of the law in `made`."""

import dataclasses

import numpy as np
import pytest
from made import CRITICAL, STEPS
from matplotlib.colors import to_hex
from test_judgement import ADAPTED, ENDED, JUDGED, LADDER, SPHERES, models, verdict
from test_report import drawn

from pipeline.drawing import GREEN, ORANGE, render
from pipeline.figures import draw

SOLVERS = 12  # judged with


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    """Not to be changed."""
    return models(LADDER, tmp_path_factory.mktemp("ladder"))


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """Not to be changed."""
    return models(ADAPTED, tmp_path_factory.mktemp("adapted"), ended=ENDED)


def axes_of(name: str, results):
    figure = draw(name, results).figure
    assert figure is not None
    return [ax for ax in figure.axes if ax.get_title() or ax.get_title(loc="left")]


def texts_at_end(ax) -> list[str]:
    return [text.get_text() for text in ax.texts if text.get_position()[0] > SOLVERS]


def test_a_ladder_has_its_training_solvers_as_rows_from_coarse_to_fine(ladder):
    euler, rk4 = axes_of("cross_solver", ladder)
    assert euler.get_title(loc="left") == "neural-ode, trained with euler"
    assert [label.get_text() for label in euler.get_yticklabels()] == [f"euler@{n}" for n in (1, 2, 4, 8, 16, 32)]
    assert [label.get_text() for label in rk4.get_yticklabels()] == ["rk4@1", "rk4@2", "rk4@4"]
    values = np.asarray(euler.collections[0].get_array()).reshape(6, SOLVERS)
    assert list(values[range(6), range(6)]) == pytest.approx([98] * 6)  # each under its own solver
    assert values[0, -1] == pytest.approx(50)
    assert list(values[3:, -1]) == pytest.approx([98] * 3)  # the flows, in the limit
    outlines = [(p.get_x(), p.get_y(), p.get_height()) for p in euler.patches if not p.get_fill()]
    assert outlines == [(i, i, 1) for i in range(6)]
    outlines = [(p.get_x(), p.get_y()) for p in rk4.patches if not p.get_fill()]
    assert outlines == [(7 + i, i) for i in range(3)]


def test_the_critical_step_is_a_line_between_two_rows_and_each_row_ends_in_its_verdicts(tmp_path):
    results = models(LADDER, tmp_path, verdict("undecided", "euler@4", seed=1))
    euler, rk4 = axes_of("cross_solver", results)
    for ax, place in ((euler, 3), (rk4, 1)):  # euler@8 and rk4@2 are the first ODEs
        (line,) = [line for line in ax.lines if line.get_linewidth() > 2]
        assert list(line.get_ydata()) == [place, place]
        assert list(line.get_xdata()) == [0, SOLVERS]
    assert CRITICAL == {"euler": 8, "rk4": 2}
    ends = ["ode 0/2", "ode 0/2", "ode 0/2, ? 1", "ode 2/2", "ode 2/2", "ode 2/2", "critical step"]
    assert texts_at_end(euler) == ends


def test_without_a_critical_step_there_is_no_line(tmp_path):
    euler, _ = axes_of("cross_solver", models(LADDER, tmp_path, verdict("discrete", "euler@32")))
    assert "critical step" not in texts_at_end(euler)
    assert not [line for line in euler.lines if line.get_linewidth() > 2]


def test_cells_of_coarser_solvers_are_pale(ladder):
    """By the law, euler@n is as far from the limit as 1 / n, rk4@n as 1 / n^4; and a solver of lower order, or with
    fewer evaluations, is coarser whatever was measured."""
    euler, rk4 = axes_of("cross_solver", ladder)
    pale = {(p.get_x(), p.get_y()) for p in euler.patches if p.get_fill()}
    of_euler = {(x, y) for y in range(6) for x in range(y)}
    of_rk4 = {(7, y) for y in range(1, 6)}  # rk4@1 is worse than euler@2
    of_rk4 |= {(8, 4), (8, 5), (9, 5)}  # rk4@2 costs 8 evaluations, rk4@4 16
    assert pale == of_euler | of_rk4
    pale = {(p.get_x(), p.get_y()) for p in rk4.patches if p.get_fill()}
    assert pale == {(x, y) for y in range(3) for x in range(7)} | {(7, 1), (7, 2), (8, 2)}


def test_columns_of_one_method_stand_over_its_name(ladder):
    _, rk4 = axes_of("cross_solver", ladder)
    assert [label.get_text() for label in rk4.get_xticklabels()] == [str(2**k) for k in (*range(7), *range(4))] + [
        "1e-6"
    ]
    assert [t.get_text() for t in rk4.texts if t.get_text() in ("euler", "rk4", "dopri5")] == ["euler", "rk4", "dopri5"]


def test_more_columns_than_have_room_for_decimals_are_written_whole(tmp_path):
    more = JUDGED.replace("dopri5@1e-6", ", ".join(f"midpoint@{n}" for n in range(1, 7)) + ", dopri5@1e-6")
    few, many = (models(text, tmp_path) for text in (LADDER, LADDER.replace(JUDGED, more)))
    assert "98.0" in [text.get_text() for text in axes_of("cross_solver", few)[0].texts]
    texts = [text.get_text() for text in axes_of("cross_solver", many)[0].texts]
    assert "98" in texts
    assert not any("." in text or "±" in text for text in texts)


def test_what_stands_on_no_ladder_has_panels_by_training_solver(adapted):
    found = axes_of("cross_solver", adapted)
    titles = [ax.get_title(loc="left") for ax in found]
    assert titles == ["trained with euler@4", "trained with euler@8", "trained with euler@500, adapted"]
    rows = [label.get_text() for label in found[-1].get_yticklabels()]
    assert rows == ["neural-ode rule=step", "neural-ode rule=agreement"]
    outline = [(p.get_x(), p.get_height()) for p in found[-1].patches if not p.get_fill()]
    assert outline == [(SOLVERS, 2)]  # the column `own`
    assert texts_at_end(found[-1])[-2:] == ["ode 2/3", "ode 2/3"]  # euler@5 is too coarse


def test_each_gap_has_its_interval_and_the_colour_of_its_verdict(ladder):
    euler, _rk4 = axes_of("validity", ladder)
    marks = [line for line in euler.lines if len(line.get_xdata()) == 1]
    bars = [line for line in euler.lines if len(line.get_xdata()) == 2 and line.get_xdata()[0] == line.get_xdata()[1]]
    assert len(marks) == len(bars) == 6 * 2
    for mark, bar in zip(marks, bars):
        gap = mark.get_ydata()[0]
        assert bar.get_ydata()[0] < gap < bar.get_ydata()[1]
        assert mark.get_xdata()[0] == bar.get_xdata()[0]
        assert to_hex(mark.get_color()) == (GREEN if gap == 0 else ORANGE).lower()
    assert sum(mark.get_ydata()[0] == 0 for mark in marks) == 3 * 2
    steps = {round(-np.log2(float(mark.get_xdata()[0]))) for mark in marks}
    assert steps == {0, 1, 2, 3, 4, 5}


def test_large_gaps_can_be_read_off(ladder):
    """35 points lie between 20 and 50, and the axis says where it begins to be logarithmic."""
    figure = draw("validity", ladder).figure
    assert figure is not None
    assert figure.get_supylabel() == "gap to dopri5@1e-6\n(points; logarithmic beyond ±2)"
    low, high = figure.axes[0].get_ylim()
    shown = [tick for tick in figure.axes[0].get_yticks() if low <= tick <= high]
    assert [tick for tick in shown if tick >= 0] == [0, 1, 2, 5, 10, 20, 50]
    assert -1 in shown


def test_lines_to_the_limit_have_the_slope_of_the_method(ladder):
    found = axes_of("order", ladder)
    assert len(found) == 2 * 2  # trained with two methods, tested with two
    for ax in found:
        order = 4 if ax.get_title().endswith("tested with rk4") else 1
        lines = [line for line in ax.lines if len(line.get_xdata()) >= 2]
        assert len(lines) == (6 if "trained with euler" in ax.get_title() else 3) + 1  # and the reference
        for line in lines:
            x, y = np.log(line.get_xdata()), np.log(line.get_ydata())
            assert np.polyfit(x, y, 1)[0] == pytest.approx(order, abs=1e-6)


def test_distances_that_were_not_measured_are_not_drawn(ladder):
    results = dataclasses.replace(ladder, table=ladder.table.assign(limit_gap=np.nan))
    assert draw("order", results).figure is None


def test_paths_stand_beside_those_in_the_limit(tmp_path):
    text = LADDER.replace("train.solver: [", "train.solver: [euler@64, ")
    results = models(text, tmp_path)
    drawing = draw("trajectories", results)
    assert "6 of 10 models are drawn" in drawing.caption
    assert drawing.figure is not None
    own, limit = drawing.figure.axes[0:12:2], drawing.figure.axes[1:12:2]
    assert {(ax.get_xlabel(), ax.get_ylabel()) for ax in drawing.figure.axes[8:12]} == {("x", "")}
    assert drawing.figure.get_supylabel() == "y"
    assert {ax.get_title() for ax in limit} == {"in the limit\n(dopri5@1e-6)"}
    shown = [ax.get_title().partition("\n") for ax in own]
    for solver, cross in (("euler@4", "25.0"), ("euler@8", "0.0"), ("rk4@1", "25.0"), ("rk4@2", "0.0")):
        assert (f"neural-ode, {solver}", f"{cross} % of pairs cross") in [(name, share) for name, _, share in shown]
    assert sum(len(c.get_segments()) for c in own[0].collections) == 5  # type: ignore[attr-defined]


def test_the_saw_tooth_ends_where_the_training_did_and_chance_is_shaded(adapted):
    results = adapted
    figure = draw("decisions", results).figure
    assert figure is not None
    above, beneath = figure.axes[:2], figure.axes[2:4]
    assert [ax.get_title() for ax in above] == [
        "neural-ode rule=step\nbegun with euler@500",
        "neural-ode rule=agreement\nbegun with euler@500",
    ]
    for ax in above:
        lines = [line for line in ax.lines if len(line.get_xdata()) > 2]
        assert [int(line.get_ydata()[-1]) for line in lines] == [37, 32, 5]
        assert all(line.get_xdata()[-1] == 4 * STEPS for line in lines)
    for ax in (*above, *beneath):
        (shade,) = ax.collections
        ends = shade.get_paths()[0].vertices[:, 0]
        assert ends.min() > 0  # the first decision has no accuracy
        assert 80 < ends.max() <= 120


def test_a_seed_has_one_colour_everywhere_and_a_name_in_the_legend(tmp_path):
    """Also one that a group lacks, and more seeds than there are colours."""
    rules = "[{solver: euler@500, adapt: {rule: step}}, {solver: euler@400, adapt: {rule: step}, lr: 2e-2}]"
    seeds = list(range(9))
    text = f"{SPHERES}\nsweep:\n  train: {rules}\n  seed: {seeds}\n{JUDGED}"
    results = models(text, tmp_path, ended=dict.fromkeys(seeds, "euler@32"))
    decisions = results.decisions
    lacks = (decisions["train.solver"] == "euler@400") & (decisions["seed"] == 0)
    results = dataclasses.replace(results, decisions=decisions[~lacks])
    figure = draw("decisions", results).figure
    assert figure is not None
    (box,) = figure.legends
    named = {t.get_text(): h for t, h in zip(box.get_texts(), box.legend_handles)}
    looks = {(h.get_color(), h.get_linestyle()) for name, h in named.items() if name.startswith("seed")}
    assert len(looks) == len(seeds)
    whole, part = (
        [(x.get_color(), x.get_linestyle()) for x in ax.lines if len(x.get_xdata()) > 2] for ax in figure.axes[:2]
    )
    assert part == whole[1:]


def test_tolerances_have_an_axis_of_tens(tmp_path):
    text = SPHERES.replace("solver: euler@1", "solver: fehlberg2@1e-6, adapt: {rule: tolerance}") + JUDGED
    results = models(text, tmp_path, ended={0: "fehlberg2@3e-7"})
    figure = draw("decisions", results).figure
    assert figure is not None
    assert figure.axes[0].get_ylabel() == "tolerance"
    line = max(figure.axes[0].lines, key=lambda line: len(line.get_xdata()))
    assert line.get_ydata()[-1] == pytest.approx(3e-7)
    for found in drawn(results).values():
        assert found.caption


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cross_solver", "validity", "order", "trajectories", "decisions"])
def test_every_figure_of_verdicts_can_be_written(adapted, name):
    figure = draw(name, adapted).figure
    assert figure is not None
    assert render(figure)["png"].startswith(b"\x89PNG")
