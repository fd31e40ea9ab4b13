"""Figures: what they draw equals what the run files say, and files are whole, small and the same every time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import rcParams
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from run_files import OVERRIDES, real_runs

from sq.analysis import MissingRuns, expected, figures, load
from sq.analysis.figures.givens import used_cells
from sq.analysis.figures.labels import place_labels
from sq.analysis.figures.look import BLUE, GREY, blank, styled
from sq.analysis.figures.outliers import HEIGHTS
from sq.analysis.figures.quality_cost import draw_quality_cost, pareto
from sq.analysis.figures.speed import speeds

pytestmark = pytest.mark.slow

DRAWN = [name for name in figures.__all__ if name.startswith("figure_")]


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return with_speed(load(real_runs(tmp_path_factory.mktemp("figures") / "runs")))


def with_speed(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with runs of figure_speed: written here, because measuring takes minutes."""
    runs = expected("figure_speed", OVERRIDES)
    runs = runs[runs["method"] != "fp16"].assign(status="finished", folder=Path("nowhere"))
    factors = {"bf16": 1.0, "fake": 0.6, "packed": 1.8, "packed_graph": 2.5}
    rates = {
        f"speed/{phase}/{kind}/b{batch}": factor * 100 * batch**power
        for phase, power in (("prefill", 0.5), ("decode", 0.9))
        for kind, factor in factors.items()
        for batch in (1, 4, 16)
    }
    return pd.concat([frame, runs.assign(**rates)], ignore_index=True)


@pytest.fixture(scope="module")
def drawn(frame: pd.DataFrame) -> Callable[[str], Figure]:
    known: dict[str, Figure] = {}

    def draw(name: str) -> Figure:
        if name not in known:
            known[name] = getattr(figures, name)(frame, overrides=OVERRIDES)
        return known[name]

    return draw


@pytest.mark.parametrize("name", DRAWN)
def test_files_are_whole_and_their_text_is_text(name: str, drawn: Callable[[str], Figure], tmp_path: Path) -> None:
    svg, png, pdf = figures.save(drawn(name), tmp_path, name)
    text = svg.read_text()
    assert text.rstrip().endswith("</svg>")
    assert len(re.findall("<text", text)) > 5
    assert not re.search(r'(href|src)="http', text)
    assert png.read_bytes()[:4] == b"\x89PNG"
    assert pdf.read_bytes()[:5] == b"%PDF-"
    width = float(re.search(r'width="([\d.]+)pt"', text)[1]) / 72  # type: ignore[index]
    assert width == pytest.approx(3.3, abs=0.01) or width == pytest.approx(6.9, abs=0.01)


@pytest.mark.parametrize("name", DRAWN)
def test_no_runs_tell_the_command_of_the_experiment(name: str, frame: pd.DataFrame) -> None:
    others = frame.assign(run_id="other")
    with pytest.raises(MissingRuns) as found:
        getattr(figures, name)(others, overrides=OVERRIDES)
    assert f"experiment={name} {' '.join(OVERRIDES)}" in found.value.command


def test_a_figure_is_the_same_file_every_time(frame: pd.DataFrame, tmp_path: Path) -> None:
    first, second = (
        figures.save(figures.figure_givens(frame, overrides=OVERRIDES), tmp_path / folder, "one")[0].read_bytes()
        for folder in ("a", "b")
    )
    assert first == second


def test_tradeoff_points_are_3600_over_the_seconds_and_kl_of_each_run(
    frame: pd.DataFrame, drawn: Callable[[str], Figure]
) -> None:
    axes = drawn("figure_tradeoff").axes[0]
    points = np.concatenate([line.get_xydata() for line in axes.lines])
    runs = frame[(frame["bits"] == "W4A4KV16") & (frame["weights"] == "rtn") & frame["kl/embedded"].notna()]
    runs = runs[runs["method"].isin(["rtn", "quarot", "spinquant", "singlequant"])]
    wanted = np.column_stack([3600 / runs["quantize/seconds"], runs["kl/embedded"]])
    assert len(points) == len(wanted) == 4
    np.testing.assert_allclose(points[points[:, 1].argsort()], wanted[wanted[:, 1].argsort()])


def test_accuracies_are_shown_in_percent_and_higher_is_better_there(frame: pd.DataFrame) -> None:
    overrides = (*OVERRIDES, "task=zeroshot")
    runs = expected("figure_tradeoff", overrides)
    numbers = np.linspace(0.4, 0.6, len(runs))
    made = runs.assign(status="finished", **{"acc/mean": numbers, "quantize/seconds": 1 + numbers})
    made = made.assign(**{"transform/multiply_adds": 0.0})
    axes = figures.figure_tradeoff(made, overrides=overrides, quality="acc").axes[0]
    points = np.concatenate([line.get_xydata() for line in axes.lines])
    np.testing.assert_allclose(np.sort(points[:, 1]), 100 * numbers)
    assert "%" in axes.get_ylabel()


def test_cost_of_another_model_is_drawn_from_the_runs_of_table_main() -> None:
    """Each method without clips, and the same method with one clip a site as a second point."""
    runs = expected("table_main", ["model=tiny"])
    runs = runs[runs["weights"] != "none"]
    numbers = np.linspace(0.2, 0.6, len(runs))
    measured = {"kl/embedded": numbers, "quantize/seconds": 10 * numbers, "transform/multiply_adds": 1e6 * numbers}
    made = runs.assign(status="finished", **measured)
    plain = made[made["activations.clip"] != "site"]
    for options in ({}, {"experiment": "table_main"}):
        figure = figures.figure_quality_cost(made, overrides=["model=tiny"], **options)
        for axes, cost in zip(figure.axes, ("transform/multiply_adds", "quantize/seconds"), strict=True):
            filled, open_ones = (
                np.concatenate([line.get_xydata() for line in axes.lines if line.get_gid() and test(line)])
                for test in (lambda line: line.get_mfc() != "white", lambda line: line.get_mfc() == "white")
            )
            wanted = plain[[cost, "kl/embedded"]].to_numpy(float)
            np.testing.assert_allclose(filled[filled[:, 1].argsort()], wanted[wanted[:, 1].argsort()])
            assert len(open_ones) == len(made) - len(plain) == 7
    assert "gptq" in figure.get_suptitle()
    with pytest.raises(MissingRuns, match="figure_quality_cost"):
        figures.figure_quality_cost(made.iloc[:0], overrides=["model=tiny"])


def test_a_trained_and_another_method_at_one_place_are_both_seen() -> None:
    numbers = {"quality": 0.06, "seconds": 9.0, "multiply_adds": 2e6, "site": False, "tip": ""}
    points = pd.DataFrame([{"label": kind, "kind": kind, **numbers} for kind in ("closed form", "trained")])
    points.attrs["title"] = ""
    figure = draw_quality_cost(points, "kl")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    axes = figure.axes[0]
    x, y = axes.transData.transform((2e6, 0.06)).round().astype(int)
    image = np.asarray(canvas.buffer_rgba())[::-1, :, :3].astype(int)  # from below, as places are counted
    around = image[y - 6 : y + 7, x - 6 : x + 7]
    for colour in (BLUE, GREY):
        near = np.abs(around - 255 * np.array(to_rgb(colour))).sum(-1) < 60
        assert near.sum() >= 6, f"{colour} is hidden"


def test_surfaces_go_from_light_to_dark_in_grey_and_labels_stand_in_their_panels(
    drawn: Callable[[str], Figure],
) -> None:
    shades = HEIGHTS(np.linspace(0, 1, 50))[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert np.all(np.diff(shades) < 0)
    assert shades[0] > 0.8
    assert shades[-1] < 0.2
    figure = drawn("figure_outliers")
    figure.draw_without_rendering()
    surfaces = [axes for axes in figure.axes if hasattr(axes, "get_zlim")]
    boxes = [axes.get_window_extent() for axes in surfaces]
    for axes, box in zip(surfaces, boxes, strict=True):
        assert {text.get_text() for text in axes.texts} == {"channel", "token", "|activation|"}
        for text in axes.texts:
            own = text.get_window_extent()
            middle = (own.x0 + own.x1) / 2
            assert box.x0 <= middle <= box.x1, text.get_text()
            assert not any(other.x0 < own.x0 and own.x1 < other.x1 for other in boxes if other is not box)


def test_marks_tell_their_numbers_in_the_svg(
    drawn: Callable[[str], Figure], frame: pd.DataFrame, tmp_path: Path
) -> None:
    text = figures.save(drawn("figure_quality_cost"), tmp_path, "one")[0].read_text()
    titles = re.findall(r'<g class="tip"><title>([^<]*)</title>', text)
    run = frame[(frame["method"] == "quarot") & frame["kl/embedded"].notna()].iloc[0]
    assert any(f"KL {run['kl/embedded']:.4f}" in title and run["run_id"] in title for title in titles)
    assert "tip:" not in text


def test_convergence_shows_each_step_and_the_mean_of_each_pass(
    frame: pd.DataFrame, drawn: Callable[[str], Figure]
) -> None:
    run = frame[(frame["method"] == "spinquant") & (frame["task.name"] == "none")].iloc[0]
    lines = (Path(run["folder"]) / "training.jsonl").read_text().splitlines()
    losses = [record["loss"] for line in lines if "loss" in (record := json.loads(line))]
    loss, norm = drawn("figure_convergence").axes
    passes = 512 // 128  # steps that deal all windows once: 512 tokens, one window of 128 a step
    np.testing.assert_allclose(loss.lines[0].get_ydata(), np.reshape(losses, (-1, passes)).mean(1))
    assert len(norm.lines[0].get_ydata()) == len(losses) == 20


def test_outliers_are_the_largest_values_of_each_channel(frame: pd.DataFrame, drawn: Callable[[str], Figure]) -> None:
    axes = drawn("figure_outliers").axes
    profiles = [one for one in axes if one.name == "rectilinear"]
    assert [one.name for one in axes if one not in profiles] == ["3d"] * 3
    (run,) = [folder for folder in frame["folder"] if (Path(folder) / "activations.npz").is_file()][:1]
    with np.load(Path(run) / "activations.npz") as kept:
        for panel, stage in zip(profiles, ("before", "after_art", "after_urt"), strict=True):
            largest = np.abs(kept[stage]).max(0)
            (filled,) = panel.collections
            heights = filled.get_paths()[0].vertices[:, 1]  # type: ignore[index]
            assert set(np.float32(largest)) <= set(np.float32(heights))


def test_used_cells_are_counted_on_the_grid_of_the_largest_entry() -> None:
    assert used_cells(np.array([[7.0, 0.0], [0.4, 0.0], [-0.4, 0.2]])).sum() == 2
    assert used_cells(np.array([[0.4, 0.0], [-0.4, 0.2], [0.0, 0.01]])).sum() == 3
    assert used_cells(np.zeros((3, 2))).sum() == 1


def test_front_holds_the_points_that_none_beats_in_both() -> None:
    generator = np.random.default_rng(0)
    cost, quality = generator.random(40), generator.random(40)
    beaten = [np.any((cost < c) & (quality < q)) for c, q in zip(cost, quality, strict=True)]
    assert sorted(pareto(cost, quality, rising=False)) == list(np.flatnonzero(~np.array(beaten)))
    assert list(pareto(np.array([1.0, 2, 3]), np.array([0.5, 0.4, 0.9]), rising=True)) == [0, 2]
    assert list(pareto(np.array([1.0, 1, 2]), np.array([0.5, 0.4, 0.4]), rising=False)) == [1]


def test_speed_is_relative_to_bf16_of_the_same_phase_and_batch() -> None:
    names = {"prefill/bf16/b1": 10.0, "prefill/packed/b1": 25.0, "decode/bf16/b4": 2.0, "decode/packed/b4": 3.0}
    run = pd.Series({f"speed/{name}": value for name, value in {**names, "decode/packed/b1": 9.0}.items()})
    found = {(row.phase, row.kind, row.batch): row.speedup for row in speeds(run).itertuples()}
    assert found == {("prefill", "packed", 1): 2.5, ("decode", "packed", 4): 1.5}


def test_labels_cover_neither_points_nor_each_other() -> None:
    figure = blank(3.3, 2.5)
    axes = figure.subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    x = [0.50, 0.52, 0.51, 0.95, 0.05]
    y = [0.50, 0.51, 0.48, 0.95, 0.05]
    place_labels(axes, x, y, [f"a method {i}" for i in range(5)], ["black"] * 5, fontsize=7)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
    assert not any(a.overlaps(b) for a, b in pairs)
    points = axes.transData.transform(np.column_stack([x, y]))
    assert not any(box.contains(*point) for box in boxes for point in points)
    frame = axes.get_window_extent()
    assert all(frame.contains(box.x0, box.y0) and frame.contains(box.x1, box.y1) for box in boxes)


def test_drawing_leaves_the_callers_settings_alone() -> None:
    before = dict(rcParams)

    @styled
    def draw() -> Figure:
        assert rcParams["svg.fonttype"] == "none"
        return blank(1, 1)

    draw()
    assert dict(rcParams) == before
