"""Charts: the drawing and the table beside it say the same, whatever the keys are called."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_app.services.admin.shapes import ChartView, GpuPoint, Point
from proxy_app.web.charts import CLOCK, HEIGHT, MOST_KEYS, bar_path, charts, line_path, top, top_of_time

EVIL = "<script>alert(1)</script>\"'><img src=x>"
amounts = st.floats(1e-6, 1e12)


def chart(name: str, *points: Point) -> str:
    return drawn(name, ChartView(span_s=3600, step_s=60, points=list(points)))


def gpu_chart(*hours: dict[str, float]) -> str:
    points = [GpuPoint(at=3600.0 * i, gpu_s=used) for i, used in enumerate(hours)]
    return drawn("gpu", ChartView(span_s=3600, step_s=60, points=minutes(60), gpu_points=points))


def drawn(name: str, view: ChartView) -> str:
    return next(str(each) for each in charts(view) if f'id="chart-{name}"' in each)


def minutes(count: int, **values: object) -> list[Point]:
    return [Point(at=60.0 * i, **values) for i in range(count)]  # type: ignore[arg-type]


@given(amounts)
def test_the_axis_ends_at_a_round_number_not_far_above_the_highest_value(highest: float) -> None:
    assert highest * 0.999999 <= top(highest) <= highest * 2


@given(st.floats(61, CLOCK[-1]))
def test_the_axis_of_a_time_ends_where_a_clock_would(highest_s: float) -> None:
    assert top_of_time(highest_s) >= highest_s
    assert top_of_time(highest_s) % 60 == 0


def test_nothing_at_all_has_an_axis_too() -> None:
    assert top(0.0) == 1.0


def test_a_line_stops_where_nothing_was_measured() -> None:
    assert line_path([1.0, 2.0, None, 1.0], 2.0).count("M") == 2
    assert line_path([None, None], 1.0) == ""
    assert line_path([], 1.0) == ""


def test_bars_stand_on_what_is_below_them() -> None:
    (start,) = re.findall(r"M[\d.]+ ([\d.]+)v-([\d.]+)", bar_path([1.0], [2.0], 4.0))
    assert start == (f"{HEIGHT / 2:.1f}", f"{HEIGHT / 4:.1f}")


@given(st.lists(st.one_of(st.none(), st.floats(0, 10)), max_size=50))
def test_nothing_is_drawn_outside_of_the_chart(values: list[float | None]) -> None:
    drawn = re.findall(r"[ML][\d.-]+ ([\d.-]+)", line_path(values, 10.0))
    assert all(0 <= float(y) <= HEIGHT for y in drawn)


def test_a_time_without_requests_is_said_and_not_drawn() -> None:
    found = charts(ChartView(span_s=3600, step_s=60, points=minutes(3)))
    assert all("<svg" not in each and 'class="empty"' in each for each in found)
    assert charts(ChartView(span_s=3600, step_s=60, points=[]))


def test_the_table_holds_every_value_that_is_drawn() -> None:
    found = chart("requests", Point(at=0.0, requests=12, errors=2), Point(at=60.0, requests=1))
    assert re.findall(r"<td>(\d+)</td>", found) == ["10", "2", "1", "0"]
    assert "13 in all, 2 of them failed by the fleet" in found


def test_what_nobody_measured_is_a_gap_in_the_table_too() -> None:
    found = chart("first-byte", Point(at=0.0, first_byte_p50=0.25), Point(at=60.0))
    assert re.findall(r"<td>(.*?)</td>", found) == ["250 ms", *["–"] * 5]


def test_keys_beyond_the_first_are_one_layer() -> None:
    found = gpu_chart({f"key{i}": float(i + 1) for i in range(MOST_KEYS + 3)})
    assert found.count('class="bar') == 2 * (MOST_KEYS + 1)
    assert "all others" in found
    assert re.findall(r"<td>(.*?)</td>", found)[-1] == "6 s"


def test_a_key_that_comes_later_used_nothing_before() -> None:
    assert "<td>0 s</td>" in gpu_chart({"a": 1.0}, {"b": 1.0})


def test_gpu_time_is_drawn_by_the_hour_beside_steps_of_a_minute() -> None:
    found = gpu_chart({"a": 90.0}, {})
    assert re.findall(r"<td>(.*?)</td>", found) == ["1 min 30 s", "0 s"]
    assert "one step is 1 h" in found


@pytest.mark.parametrize("name", [EVIL, "x" * 10_000, "\u202eשלום", "", "{name}"])
def test_a_key_may_be_called_anything(name: str) -> None:
    found = gpu_chart(*[{name: 1.0, "other": 2.0}] * 3)
    assert "<script" not in found
    assert "<img" not in found
    assert len(found) < 10_000
    ElementTree.fromstring(found)


def test_the_markup_needs_no_inline_style_and_no_script() -> None:
    used = [GpuPoint(at=0.0, gpu_s={"a": 1.0})]
    view = ChartView(span_s=60, step_s=60, points=minutes(2, requests=1, loads=1), gpu_points=used)
    found = "".join(charts(view))
    assert not re.search(r"\sstyle=|<style|<script|\son\w+=", found)


def test_loads_are_told_from_what_a_loaded_model_says_of_itself() -> None:
    assert "2 that took 1 s or longer" in chart("loads", Point(at=0.0, loads=2))
    assert "No model took 1 s or longer to load" in chart("loads", Point(at=0.0))
