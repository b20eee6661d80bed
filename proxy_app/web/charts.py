"""Charts over time: a ChartView becomes SVG with a table beside it that says the same.

Pure. Nothing in the markup needs a script or an inline style: geometry is attributes, colour is a class of the style
sheet. All text stands outside of the SVG, which is stretched to the room that there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import floor, log10

from markupsafe import Markup

from proxy_app.services.admin.shapes import ChartView, GpuPoint, Point
from proxy_app.services.explanation import LOAD_MS
from proxy_app.web.units import count, iso, rate, seconds, utc

WIDTH, HEIGHT = 600.0, 100.0
# More colours than this nobody tells apart.
MOST_KEYS = 5
ROUND = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0)
# Seconds: two minutes, five, ... a day, two.
CLOCK = (120, 300, 600, 1200, 1800, 3600, 7200, 4 * 3600, 8 * 3600, 12 * 3600, 86400, 2 * 86400)
# Letters of a key's name in a legend.
LONGEST_LABEL = 60
# Bars leave a fifth of their room empty.
BAR = 0.8

Value = float | None
Say = Callable[[Value], str]


@dataclass(frozen=True, slots=True)
class Series:
    """One line, or one layer of bars. values: one for each point; None: nothing was measured."""

    label: str
    values: tuple[Value, ...]

    @property
    def total(self) -> float:
        return sum(value or 0.0 for value in self.values)

    @property
    def highest(self) -> float:
        return max((value or 0.0 for value in self.values), default=0.0)


@dataclass(frozen=True, slots=True)
class Chart:
    """What is drawn. summary: the chart in a sentence. empty: what to say where there is nothing to draw."""

    name: str
    title: str
    series: tuple[Series, ...]
    say: Say
    summary: str
    empty: str
    is_stacked: bool = False

    @property
    def is_empty(self) -> bool:
        return not any(each.highest for each in self.series)


def charts(view: ChartView) -> list[Markup]:
    """All charts of the traffic page, in its order."""
    ats, gpu_ats = [point.at for point in view.points], [point.at for point in view.gpu_points]
    drawn = [_figure(chart, ats, view.step_s) for chart in _all(view.points)]
    return [*drawn, _figure(_gpu(view.gpu_points), gpu_ats, view.gpu_step_s)]


def _all(points: Sequence[Point]) -> Iterator[Chart]:
    yield _requests(points)
    yield _first_byte(points)
    yield _speed(points)
    yield _loads(points)


def _requests(points: Sequence[Point]) -> Chart:
    good = Series("all others", tuple(float(max(p.requests - p.errors, 0)) for p in points))
    bad = Series("failed by the fleet", tuple(float(p.errors) for p in points))
    summary = f"{count(good.total + bad.total)} in all, {count(bad.total)} of them failed by the fleet"
    empty = "No request came in this time."
    return Chart("requests", "Requests", (good, bad), count, summary, empty, is_stacked=True)


def _first_byte(points: Sequence[Point]) -> Chart:
    half = Series("half are faster (p50)", tuple(p.first_byte_p50 for p in points))
    most = Series("95 of 100 are faster (p95)", tuple(p.first_byte_p95 for p in points))
    nearly = Series("99 of 100 are faster (p99)", tuple(p.first_byte_p99 for p in points))
    summary = f"the worst step had a p95 of {seconds(most.highest)}"
    empty = "No answer began in this time."
    return Chart("first-byte", "Time to the first byte", (half, most, nearly), seconds, summary, empty)


def _speed(points: Sequence[Point]) -> Chart:
    speed = Series("tokens/s", tuple(p.tokens_per_s for p in points))
    summary = f"at most {rate(speed.highest)}"
    return Chart("speed", "Tokens per second", (speed,), rate, summary, "No token was made in this time.")


def _loads(points: Sequence[Point]) -> Chart:
    loads = Series("loads", tuple(float(p.loads) for p in points))
    least = seconds(LOAD_MS / 1000)
    summary = f"{count(loads.total)} that took {least} or longer"
    empty = f"No model took {least} or longer to load in this time."
    return Chart("loads", "Model loads", (loads,), count, summary, empty, is_stacked=True)


def _gpu(points: Sequence[GpuPoint]) -> Chart:
    series = _by_key(points)
    summary = f"{seconds(sum(each.total for each in series))} in all"
    empty = "No GPU worked for anybody in this time."
    return Chart("gpu", "GPU time by key", series, seconds, summary, empty, is_stacked=True)


def _by_key(points: Sequence[GpuPoint]) -> tuple[Series, ...]:
    """The keys that used most, and all others together."""
    names = dict.fromkeys(name for point in points for name in point.gpu_s)
    each = [Series(_label(name), tuple(p.gpu_s.get(name, 0.0) for p in points)) for name in names]
    each.sort(key=lambda series: -series.total)
    first, rest = each[:MOST_KEYS], each[MOST_KEYS:]
    if rest:
        first.append(Series("all others", _sums(rest, len(points))))
    return tuple(first)


def _label(name: str) -> str:
    return (name if len(name) <= LONGEST_LABEL else f"{name[:LONGEST_LABEL]}…") or "without a key"


def _sums(series: Iterable[Series], length: int) -> tuple[float, ...]:
    sums = [0.0] * length
    for each in series:
        sums = [total + (value or 0.0) for total, value in zip(sums, each.values, strict=True)]
    return tuple(sums)


# -- geometry --------------------------------------------------------------------------------------


def top(highest: float) -> float:
    """The end of the axis: a round number at or above the highest value, whose half is round, too."""
    power = 10.0 ** floor(log10(highest)) if highest > 0 else 1.0
    return next(step * power for step in ROUND if highest <= step * power * (1 + 1e-9))


def top_of_time(highest_s: float) -> float:
    """As `top`, in the steps of a clock."""
    return next((step for step in CLOCK if 60 < highest_s <= step), top(highest_s))


def _end(chart: Chart) -> float:
    highest = _highest(chart)
    if chart.say is seconds:
        return top_of_time(highest)
    # Half of one request is nothing that an axis could show.
    return top(max(highest, 2.0)) if chart.say is count else top(highest)


def line_path(values: Sequence[Value], end: float) -> str:
    """A line through the middles of the steps; it stops where nothing was measured, and a lone point is a dash."""
    step = WIDTH / max(len(values), 1)
    parts = []
    for index, value in enumerate(values):
        if value is None:
            continue
        x, y = (index + 0.5) * step, HEIGHT - min(value, end) / end * HEIGHT
        is_first = index == 0 or values[index - 1] is None
        parts.append(f"M{x - step / 4:.1f} {y:.1f}H{x:.1f}" if is_first else f"L{x:.1f} {y:.1f}")
    return "".join(parts)


def bar_path(values: Sequence[Value], below: Sequence[float], end: float) -> str:
    """One layer of bars, each on top of what is below it."""
    step = WIDTH / max(len(values), 1)
    parts = []
    for index, (value, base) in enumerate(zip(values, below, strict=True)):
        if value:
            x, y, height = (index + (1 - BAR) / 2) * step, HEIGHT - base / end * HEIGHT, value / end * HEIGHT
            parts.append(f"M{x:.1f} {y:.1f}v-{height:.1f}h{step * BAR:.1f}v{height:.1f}z")
    return "".join(parts)


def _paths(chart: Chart, end: float) -> Iterator[Markup]:
    below = [0.0] * len(chart.series[0].values)
    for number, each in enumerate(chart.series, 1):
        if chart.is_stacked:
            path = bar_path(each.values, below, end)
            below = [base + (value or 0.0) for base, value in zip(below, each.values, strict=True)]
        else:
            path = line_path(each.values, end)
        shape = "bar" if chart.is_stacked else "line"
        yield Markup('<path class="{} c{}" d="{}"/>').format(shape, number, path)


def _highest(chart: Chart) -> float:
    if not chart.is_stacked:
        return max((each.highest for each in chart.series), default=0.0)
    return max(_sums(chart.series, len(chart.series[0].values)), default=0.0)


# -- markup ----------------------------------------------------------------------------------------

_FIGURE = Markup(
    '<figure class="chart" id="chart-{name}"><figcaption><h3>{title}</h3><p class="sum">{summary}</p></figcaption>'
    "{body}</figure>"
)
_BODY = Markup(
    "{legend}"
    '<div class="plot"><div class="ys" aria-hidden="true"><span>{top}</span><span>{middle}</span><span>0</span></div>'
    '<svg viewBox="0 0 {width:.0f} {height:.0f}" preserveAspectRatio="none" role="img" aria-label="{said}">'
    '<path class="rules" d="M0 0H{width:.0f}M0 {half:.0f}H{width:.0f}M0 {height:.0f}H{width:.0f}"/>{paths}</svg>'
    '<div class="xs{few}" aria-hidden="true">{marks}</div></div>'
    '<p class="readout" aria-hidden="true"></p>'
    '<details id="numbers-{name}"><summary>{title}: the numbers as a table</summary>'
    '<div class="scroll" role="region" tabindex="0" aria-label="{title} as a table"><table class="numbers">'
    '<thead><tr><th scope="col">From</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div></details>'
)


def _figure(chart: Chart, ats: Sequence[float], step_s: float) -> Markup:
    if chart.is_empty:
        body = Markup('<p class="empty">{}</p>').format(chart.empty)
        return _FIGURE.format(name=chart.name, title=chart.title, summary="", body=body)
    shown = replace(chart, summary=f"{chart.summary}; one step is {seconds(step_s)}")
    return _FIGURE.format(name=chart.name, title=chart.title, summary=shown.summary, body=_body(shown, ats))


def _body(chart: Chart, ats: Sequence[float]) -> Markup:
    end = _end(chart)
    return _BODY.format(
        name=chart.name,
        title=chart.title,
        said=f"{chart.title}: {chart.summary}",
        legend=_legend(chart),
        top=chart.say(end),
        middle=chart.say(end / 2),
        width=WIDTH,
        height=HEIGHT,
        half=HEIGHT / 2,
        paths=_joined(_paths(chart, end)),
        # Each of two or three steps has its own, below it.
        few=" few" if len(ats) <= 3 else "",
        marks=_joined(_time(at, "short") for at in dict.fromkeys((ats[0], ats[len(ats) // 2], ats[-1]))),
        heads=_joined(Markup('<th scope="col"><bdi>{}</bdi></th>').format(each.label) for each in chart.series),
        rows=_joined(_rows(chart, ats)),
    )


def _legend(chart: Chart) -> Markup:
    """What each colour means; a single one says what the title says."""
    if len(chart.series) == 1:
        return Markup()
    return Markup('<ul class="legend">{}</ul>').format(_joined(_keys(chart)))


def _keys(chart: Chart) -> Iterator[Markup]:
    for number, each in enumerate(chart.series, 1):
        key = Markup('<svg class="key" viewBox="0 0 12 8" aria-hidden="true"><path class="{} c{}" d="{}"/></svg>')
        shape, path = ("bar", "M0 0h12v8h-12z") if chart.is_stacked else ("line", "M0 4h12")
        yield Markup("<li>{}<bdi>{}</bdi></li>").format(key.format(shape, number, path), each.label)


def _rows(chart: Chart, ats: Sequence[float]) -> Iterator[Markup]:
    for at, *values in zip(ats, *(each.values for each in chart.series), strict=True):
        cells = _joined(Markup("<td>{}</td>").format(chart.say(value)) for value in values)
        yield Markup('<tr><th scope="row">{}</th>{}</tr>').format(_time(at, "short"), cells)


def _time(at: float, form: str) -> Markup:
    return Markup('<time datetime="{}" data-form="{}">{}</time>').format(iso(at), form, utc(at))


def _joined(parts: Iterable[Markup]) -> Markup:
    return Markup("").join(parts)
