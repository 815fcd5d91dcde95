"""Accuracy against cost."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.profiler.pareto import Point, draw, front, measure, table, to_json, wilson
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import decode
from tests.support.packages import write_tiny_package


def point(accuracy: float, size: int, latency: float = 1.0, form: str = "fp32") -> Point:
    return Point(
        package="net", form=form, interpreter="executorch", accuracy=accuracy, size_bytes=size, latency_us=latency,
        examples=10,
    )  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), max_size=12))
def test_none_is_better_than_one_of_the_front(drawn):
    points = [point(accuracy / 5, size) for accuracy, size in drawn]
    best = front(points, lambda p: p.size_bytes)

    def better(one: Point, other: Point) -> bool:
        pair = (one.accuracy, -one.size_bytes), (other.accuracy, -other.size_bytes)
        return pair[0] != pair[1] and pair[0][0] >= pair[1][0] and pair[0][1] >= pair[1][1]

    assert not any(better(other, one) for one in best for other in points)
    for one in points:
        assert any(
            better(other, one) or (other.accuracy, other.size_bytes) == (one.accuracy, one.size_bytes) for other in best
        )


@pytest.mark.parametrize("suffix", [".png", ".svg", ".html"])
def test_a_plot_is_written(tmp_path, suffix):
    points = [point(0.9, 1000, 20, "fp32"), point(0.8, 100, 10, "4bit<b>")]
    path = tmp_path / f"plot{suffix}"
    draw(points, path)
    data = path.read_bytes()
    assert data.startswith({".png": b"\x89PNG", ".svg": b"<?xml", ".html": b"<!doctype html>"}[suffix])
    assert b"4bit<b>" not in data
    with pytest.raises(CallerError, match=r"write to one of \.png, \.svg, \.html"):
        draw(points, tmp_path / "plot.pdf")
    with pytest.raises(CallerError, match="nowhere is not a folder"):
        draw(points, tmp_path / "nowhere" / f"plot{suffix}")
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_axes_are_read_without_markup(tmp_path):
    draw([point(0.9, 20_000, 24, "fp32"), point(0.8, 2_100, 150, "4bit")], tmp_path / "plot.svg")
    assert "mathdefault" not in (tmp_path / "plot.svg").read_text()


def test_points_can_be_read_again():
    points = [point(0.5, 10), point(0.25, 5)]
    assert [decode(line.encode(), Point) for line in to_json(points).splitlines()] == points
    assert "50.00%" in table(points)
    assert table(points).splitlines()[1].split()[3:] == ["50.00%", "n/a", "10", "1", "n/a", "10"]


def test_the_table_and_the_page_say_how_sure_they_are(tmp_path):
    sure = msgspec.structs.replace(point(0.9, 1000, 20), latency_error=0.034, accuracy_low=0.8512, accuracy_high=0.9341)
    assert table([sure]).splitlines()[1].split()[3:] == ["90.00%", "85.1-93.4", "%", "1,000", "20", "3.4", "10"]
    assert "what a new process or another load moves is not in it" in " ".join(table([sure]).split())
    draw([sure, point(0.8, 100, 10)], tmp_path / "plot.html")
    assert "<td>85.1-93.4 %<td>1,000<td>20<td>3.4<td>10" in (tmp_path / "plot.html").read_text()


@given(st.integers(1, 300).flatmap(lambda rows: st.tuples(st.integers(0, rows), st.just(rows))))
def test_the_interval_holds_every_share_whose_score_is_within_it(drawn):
    right, rows = drawn
    low, high = wilson(right, rows)
    assert 0 <= low <= right / rows <= high <= 1
    for true in np.linspace(0.001, 0.999, 37):
        score = abs(right / rows - true) / np.sqrt(true * (1 - true) / rows)
        assert (low <= true <= high) == (score <= 1.96) or abs(score - 1.96) < 1e-6


def test_packages_are_run_over_labelled_inputs(tmp_path):
    path = write_tiny_package(tmp_path / "add.ferry", added=1.0)
    x = np.array([[1.0, 3.0, 2.0, 0.0]], np.float32)
    found = measure([path], [((x,), np.array([1])), ((x,), np.array([2]))])
    assert {one.accuracy for one in found} == {0.5}
    assert all(one.latency_us > 0 and one.examples == 2 for one in found)
    assert all(one.latency_error >= 0 and one.accuracy_low < 0.5 < one.accuracy_high for one in found)
    with pytest.raises(CallerError, match="1 rows of 4 classes, and they have 2 class numbers"):
        measure([path], [((x,), np.array([1, 2]))])
    with pytest.raises(CallerError, match="class numbers are 4 to 4, and the model has 4 classes"):
        measure([path], [((x,), np.array([4]))])
    assert {one.accuracy for one in measure([path], [((x * np.nan,), np.array([0]))])} == {0.0}
    (three,) = {one.accuracy for one in measure([path], [((x.repeat(3, 0),), np.array([1, 1, 2]))])}
    assert three == pytest.approx(2 / 3)
    with pytest.raises(CallerError, match="no labelled inputs"):
        measure([path], [])
