"""The page of an evaluation: what was scored, the table, curves, diagrams, events on maps; one HTML file.

`scores` is the Dataset of an evaluation, `scores.nc`. A section is there if its data are.
"""

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xarray as xr
from matplotlib.figure import Figure

from raincast.output import event_maps, page, score_figures
from raincast.output.event_maps import EventMaps
from raincast.output.tables import lead_minutes
from raincast.schema import LEAD_TIME

Floats = npt.NDArray[np.float64]

STYLE = (
    """
nav { font-size: .9em; margin: .6em 0 0; } nav a { margin-right: 1em; } a { color: #005a8c; }
th { vertical-align: bottom; } .scores td, .scores th { padding: .2em .8em; text-align: right; }
.scores td:first-child, .scores th:first-child { text-align: left; padding-left: 0; color: inherit; }
.scores tr + tr td { border-top: 1px solid #e3e8ec; } .scores small { color: #5a6772; display: block; }
.scores td { white-space: nowrap; } .best { font-weight: 600; }
details { margin: .5em 0; } summary { cursor: pointer; } p { max-width: 75ch; }
h3 { font-size: 1em; margin: 1.2em 0 .2em; } .note { color: #5a6772; font-size: .9em; }
"""
    + event_maps.STYLE
)

Badness = Callable[[Floats], Floats]
MORE: dict[str, tuple[str, Badness]] = {  # name → heading, and how far from the best a value is
    "pod": ("POD", np.negative),
    "far": ("FAR", np.positive),
    "frequency_bias": ("bias", lambda bias: np.abs(np.log(bias))),
    "hss": ("HSS", np.negative),
    "ets": ("ETS", np.negative),
    "mean_error": ("ME mm/h", np.abs),
    "mae": ("MAE mm/h", np.positive),
    "rmse": ("RMSE mm/h", np.positive),
    "correlation": ("corr.", np.negative),
    "crps": ("CRPS mm/h", np.positive),
}
ERRORS = ("mean_error", "mae", "rmse", "correlation")
SHARP_AT = (0.5, 1.0)
"""Where in the lead times spectra are shown: half-way, and at the end."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What the page tells.

    `by_event` and `by_hour` are scores with a dimension more, `event` or `hour`. `low` and `high` are the ends of
    intervals of the means over the lead times, under the names of the scores. `verdicts` are sentences; `facts`
    are rows by heading; `config` is the resolved config of the training.
    """

    scores: xr.Dataset
    threshold: float
    facts: Mapping[str, Sequence[tuple[str, str]]]
    by_event: xr.Dataset | None = None
    by_hour: xr.Dataset | None = None
    low: xr.Dataset | None = None
    high: xr.Dataset | None = None
    verdicts: Sequence[str] = ()
    config: str = ""
    maps: Sequence[EventMaps] = field(default_factory=tuple)


def write_report(evaluation: Evaluation, path: Path, *, title: str) -> Path:
    """report.html: opens from disk, asks no network, and says everything in one file."""
    sections = list(_sections(evaluation))
    links = "".join(f'<a href="#s{k}">{html.escape(name)}</a>' for k, (name, _) in enumerate(sections))
    parts = [f"<nav>{links}</nav>"]
    parts += [
        f'<section id="s{k}"><h2>{html.escape(name)}</h2>{content}</section>'
        for k, (name, content) in enumerate(sections)
    ]
    script = event_maps.SCRIPT if evaluation.maps else ""
    return page.write_page(path, title=title, heading=title, parts=parts, style=STYLE, script=script)


def _sections(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    """Headings and what stands below them, in the order of reading."""
    makers: dict[str, Callable[[Evaluation], str]] = {
        "Scores": _table,
        "Against lead time": _curves,
        "Events on maps": _maps,
        "Performance": _performance,
        "Probabilities": _reliability,
        "Scales": _scales,
        "By event": _events,
        "By hour of day": _hours,
        "What was trained and scored": _facts,
    }
    for name, make in makers.items():
        if content := make(evaluation):
            yield name, content


def _table(evaluation: Evaluation) -> str:
    scores = evaluation.scores
    said = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in evaluation.verdicts)
    columns: list[Column] = [
        (f"CSI ≥ {t:g} mm/h", _mean(scores["csi"].sel(threshold=t)), np.negative, ("csi", float(t)))
        for t in scores["threshold"].values
    ]
    main = _score_table(evaluation, columns)
    note = "Means over the lead times at which a score is defined; the best of each column is bold."
    if evaluation.low is not None:
        note += " Below each, the interval that holds 95 % of the means when events are drawn anew."
    others = "".join(
        f"<h3>at ≥ {t:g} mm/h</h3>{_score_table(evaluation, _other_columns(scores, float(t)))}"
        for t in scores["threshold"].values
    )
    return (
        f'{said}{main}<p class="note">{note}</p><h3>Further scores at ≥ {evaluation.threshold:g} mm/h</h3>'
        f"{_score_table(evaluation, _other_columns(scores, evaluation.threshold))}"
        f"<details><summary>at every threshold</summary>{others}</details>"
    )


Column = tuple[str, xr.DataArray, Badness, tuple[str, float | None]]


def _other_columns(scores: xr.Dataset, threshold: float) -> list[Column]:
    columns: list[Column] = []
    for name, (heading, badness) in MORE.items():
        if name not in scores:
            continue
        values, at = scores[name], None
        if "threshold" in values.dims:
            values, at = values.sel(threshold=threshold), threshold
        columns.append((heading, _mean(values), badness, (name, at)))
    return columns


def _mean(values: xr.DataArray) -> xr.DataArray:
    return values.mean(LEAD_TIME)  # skips what is undefined


def _score_table(evaluation: Evaluation, columns: Sequence[Column]) -> str:
    head = "".join(f'<th scope="col">{html.escape(heading)}</th>' for heading, *_ in columns)
    cells = [_cells(evaluation, *column[1:]) for column in columns]
    rows = "".join(
        f'<tr><td scope="row">{html.escape(str(name))}</td>{"".join(column[k] for column in cells)}</tr>'
        for k, name in enumerate(evaluation.scores["forecaster"].values)
    )
    head = f'<tr><th scope="col">forecaster</th>{head}</tr>'
    return f'<div class="wide"><table class="scores">{head}{rows}</table></div>'


def _cells(
    evaluation: Evaluation,
    means: xr.DataArray,
    badness: Badness,
    key: tuple[str, float | None],
) -> list[str]:
    values = means.values.astype(np.float64)
    texts = [f"{value:.3f}" if np.isfinite(value) else "–" for value in values]
    with np.errstate(divide="ignore", invalid="ignore"):
        bad = np.where(np.isfinite(values), badness(values), np.nan)
    best = texts[int(np.nanargmin(bad))] if np.isfinite(bad).sum() > 1 else None
    cells = []
    for k, text in enumerate(texts):
        mark = ' class="best"' if text == best else ""
        cells.append(f"<td{mark}>{text}{_interval(evaluation, key, k)}</td>")
    return cells


def _interval(evaluation: Evaluation, key: tuple[str, float | None], forecaster: int) -> str:
    ends = []
    for side in (evaluation.low, evaluation.high):
        if side is None or key[0] not in side:
            return ""
        value = side[key[0]].isel(forecaster=forecaster)
        value = value if key[1] is None else value.sel(threshold=key[1])
        if not np.isfinite(value):
            return ""
        ends.append(f"{float(value):.3f}")
    return f"<small>{ends[0]} to {ends[1]}</small>"


def _shown(figure: Figure, alt: str, note: str = "") -> str:
    said = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return said + page.picture(score_figures.svg(figure), alt)


def _curves(evaluation: Evaluation) -> str:
    scores = evaluation.scores
    thresholds = scores["threshold"].values
    csi = {f"CSI, rain ≥ {t:g} mm/h": scores["csi"].sel(threshold=t) for t in thresholds}
    said = "CSI of each forecaster against lead time"
    parts = [_shown(score_figures.lead_curves(scores, csi), said, "1 is perfect.")]
    bias = {f"bias, rain ≥ {t:g} mm/h": scores["frequency_bias"].sel(threshold=t) for t in thresholds}
    parts.append(
        _shown(
            score_figures.lead_curves(scores, bias),
            "frequency bias of each forecaster against lead time",
            "Above 1 a forecaster says it rains so hard more often than it does, below 1 less often.",
        )
    )
    errors = {
        f"{MORE[name][0]}": scores[name] for name in ("mean_error", "mae", "rmse", "correlation") if name in scores
    }
    if errors:
        parts.append(_shown(score_figures.lead_curves(scores, errors), "errors of the rate against lead time"))
    return "".join(parts)


def _maps(evaluation: Evaluation) -> str:
    if not evaluation.maps:
        return ""
    return event_maps.legend() + "".join(maps.to_html() for maps in evaluation.maps)


def _performance(evaluation: Evaluation) -> str:
    scores = evaluation.scores
    if "pod" not in scores or "far" not in scores:
        return ""
    return _shown(
        score_figures.performance_diagram(scores, scores["threshold"].values.tolist()),
        "performance diagram: POD against success ratio",
        "The upper right corner is perfect (Roebber 2009). Each line follows a forecaster through its lead times, "
        "from the large marker on; curves are of equal CSI, dashed rays of equal frequency bias.",
    )


def _reliability(evaluation: Evaluation) -> str:
    curves = reliability_curves(evaluation.scores)
    if not curves:
        return ""
    return _shown(
        score_figures.reliability_diagram(curves),
        "reliability diagram: observed frequency against stated probability",
        "All lead times together. On the diagonal, of what is called 30 % three in ten come; below it the "
        "forecaster is too sure. Below, how many pixels were given each probability.",
    )


def reliability_curves(scores: xr.Dataset) -> dict[str, dict[str, tuple[Floats, Floats, Floats]]]:
    """Panels of `score_figures.reliability_diagram`, all lead times and events together."""
    kinds = {"": "sum_probability_", ", uncalibrated": "sum_uncalibrated_probability_"}
    curves: dict[str, dict[str, tuple[Floats, Floats, Floats]]] = {}
    for label, prefix in kinds.items():
        names = [f"{prefix}{name}" for name in ("probability", "events", "forecasts")]
        if any(name not in scores for name in names):
            continue
        stated, events, number = (scores[name].sum(["event", LEAD_TIME]).astype(float) for name in names)
        for t in scores["threshold"].values:
            panel = curves.setdefault(f"rain ≥ {t:g} mm/h", {})
            for name in scores["forecaster"].values:
                at = {"forecaster": name, "threshold": t}
                count = number.sel(at).values
                if count.sum() == 0:  # one that states no probabilities
                    continue
                with np.errstate(invalid="ignore", divide="ignore"):
                    panel[f"{name}{label}"] = (stated.sel(at).values / count, events.sel(at).values / count, count)
    return {title: panel for title, panel in curves.items() if panel}


def _scales(evaluation: Evaluation) -> str:
    scores, parts = evaluation.scores, []
    if "fss" in scores:
        fss = {
            f"FSS, {scale:g} km, rain ≥ {evaluation.threshold:g} mm/h": scores["fss"].sel(
                threshold=evaluation.threshold, scale=scale
            )
            for scale in scores["scale"].values
        }
        parts.append(
            _shown(
                score_figures.lead_curves(scores, fss),
                "fractions skill score against lead time, by scale",
                "How well the share of wet pixels in boxes of so many km agrees.",
            )
        )
    if "spectrum" in scores:
        num_leads = scores.sizes[LEAD_TIME]
        leads = sorted({max(0, round(share * num_leads) - 1) for share in SHARP_AT})
        parts.append(
            _shown(
                score_figures.spectra(scores, leads),
                "radially averaged power spectra of forecasts and observation",
                "Below the observed curve detail is lost: the forecast is blurred. The effective resolution is "
                "the wavelength below which less than half of the observed power is left.",
            )
        )
    return "".join(parts)


def _events(evaluation: Evaluation) -> str:
    return _by(evaluation, evaluation.by_event, "event", "windows")


def _hours(evaluation: Evaluation) -> str:
    return _by(evaluation, evaluation.by_hour, "hour", "windows")


def _by(evaluation: Evaluation, scores: xr.Dataset | None, dim: str, unit: str) -> str:
    if scores is None or scores.sizes[dim] < 2:
        return ""
    csi = scores["csi"].sel(threshold=evaluation.threshold)
    support = scores["num_windows"].values if "num_windows" in scores else None
    said = {"event": "Events in the order of time", "hour": "Hours of the newest input frame, UTC"}[dim]
    title = f"CSI, rain ≥ {evaluation.threshold:g} mm/h, all lead times"
    return _shown(
        score_figures.dots(csi, dim, title=title, support=support, unit=unit),
        f"CSI of each forecaster by {dim}",
        f"{said}; bars: how many windows are behind it.",
    )


def _facts(evaluation: Evaluation) -> str:
    minutes = lead_minutes(evaluation.scores)
    rows = {"lead times": f"{minutes[0]:g} to {minutes[-1]:g} min, {minutes.size} of them"}
    parts = [
        f"<h3>{html.escape(title)}</h3>{page.table(list(facts))}" for title, facts in evaluation.facts.items()
    ]
    parts.append(f"<h3>Scoring</h3>{page.table(list(rows.items()))}")
    if evaluation.config:
        parts.append(
            f"<details><summary>the config that the network was trained with</summary>"
            f"<pre>{html.escape(evaluation.config)}</pre></details>"
        )
    return "".join(parts)
