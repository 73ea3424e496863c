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

from raincast.output import evaluation_tables as tables
from raincast.output import event_maps, page, score_figures
from raincast.output.event_maps import EventMaps
from raincast.output.tables import lead_minutes
from raincast.schema import LEAD_TIME

Floats = npt.NDArray[np.float64]

STYLE = (
    """
nav { font-size: .9em; margin: .6em 0 0; } nav a { margin-right: 1em; } a { color: #005a8c; }
.scores td, .scores th { padding: .2em .6em; text-align: right; vertical-align: top;
  white-space: nowrap; }
.scores td:first-child, .scores th:first-child { text-align: left; padding-left: 0; color: inherit; }
.scores tr + tr > * { border-top: 1px solid #e3e8ec; } .scores small { color: #5a6772; display: block; }
.scores .best { font-weight: 700; } .scores small { font-weight: 400; }
details { margin: .5em 0; } summary { cursor: pointer; } p { max-width: 75ch; }
h3 { font-size: 1em; margin: 1.2em 0 .2em; } .note { color: #5a6772; font-size: .9em; }
"""
    + event_maps.STYLE
)

ERRORS = {
    "mean_error": "mean error (mm/h)",
    "mae": "mean absolute error (mm/h)",
    "rmse": "root mean squared error (mm/h)",
    "correlation": "correlation",
}
MAP_NOTE = (
    '<p class="note">The events at which the first forecaster did best, in the middle and worst, of those with at '
    "least a tenth of the rain of the mean event. Move the slider, or focus it and press the arrow keys.</p>"
)
BEFORE = ", before calibration"
SHARP_AT = (0.5, 1.0)
"""Where in the lead times spectra are shown: half-way, and at the end."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What the page tells.

    `threshold` (mm/h) is what single-threshold figures are of. `by_event` and `by_hour` are CSI and `num_windows`
    by `event` or `hour`; `facts` are rows by heading; `config` is the resolved config of the training.
    """

    scores: xr.Dataset
    threshold: float
    facts: Mapping[str, Sequence[tuple[str, str]]]
    by_event: xr.Dataset | None = None
    by_hour: xr.Dataset | None = None
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
        "Ensembles": _ensembles,
        "Scales": _scales,
        "Neighbourhoods, amounts, onsets": _users,
        "By event": _events,
        "By hour of day": _hours,
        "What was trained and scored": _facts,
    }
    for name, make in makers.items():
        if content := make(evaluation):
            yield name, content


def _table(evaluation: Evaluation) -> str:
    scores, threshold = evaluation.scores, evaluation.threshold
    note = "Means over the lead times at which a score is defined; the best of each column is bold."
    if "confidence" in scores.attrs and scores.sizes["event"] > 1:  # of one there is none
        note += (
            f" Below each the interval of {100 * float(scores.attrs['confidence']):g} % of the means when the "
            f"{scores.sizes['event']} events are drawn anew."
        )
    others = "".join(
        f"<h3>at ≥ {t:g} mm/h</h3>{tables.difference_table(scores, t)}"
        f"{tables.score_table(scores, tables.at_threshold(scores, t))}"
        for t in scores["threshold"].values
    )
    return (
        f'{tables.score_table(scores, tables.by_threshold(scores, "csi"))}<p class="note">{note}</p>'
        f"<h3>Is it better? CSI at ≥ {threshold:g} mm/h, mean over the lead times</h3>"
        f"{tables.difference_table(scores, threshold)}"
        f"<h3>Further scores at ≥ {threshold:g} mm/h</h3>"
        f"{tables.score_table(scores, tables.at_threshold(scores, threshold))}"
        f"<details><summary>at every threshold</summary>{others}</details>"
    )


def _shown(figure: Figure, alt: str, note: str = "") -> str:
    said = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return said + page.picture(score_figures.svg(figure), alt)


def _curves(evaluation: Evaluation) -> str:
    scores = evaluation.scores
    parts = [
        _lead_curves(scores, "csi", "CSI", "1 is perfect. Shades are the intervals of the table."),
        _lead_curves(
            scores,
            "frequency_bias",
            "bias",
            "Above 1 a forecaster says it rains so hard more often than it does, below 1 less often.",
        ),
    ]
    errors = {title: name for name, title in ERRORS.items() if name in scores}
    if errors:
        panels = {title: scores[name] for title, name in errors.items()}
        figure = score_figures.lead_curves(scores, panels, bands=_bands(scores, errors))
        parts.append(_shown(figure, "errors of the rain rate against lead time"))
    return "".join(parts)


def _lead_curves(scores: xr.Dataset, name: str, title: str, note: str) -> str:
    """A panel a threshold."""
    at = {f"{title}, rain ≥ {t:g} mm/h": t for t in scores["threshold"].values}
    bands = {}
    if f"{name}_interval" in scores:
        ends = scores[f"{name}_interval"]
        bands = {key: (ends.sel(threshold=t)[0], ends.sel(threshold=t)[1]) for key, t in at.items()}
    figure = score_figures.lead_curves(
        scores, {key: scores[name].sel(threshold=t) for key, t in at.items()}, bands=bands
    )
    return _shown(figure, f"{title} of each forecaster against lead time", note)


def _bands(scores: xr.Dataset, names: Mapping[str, str]) -> dict[str, tuple[xr.DataArray, xr.DataArray]]:
    found = {key: f"{name}_interval" for key, name in names.items() if f"{name}_interval" in scores}
    return {key: (scores[name][0], scores[name][1]) for key, name in found.items()}


def _maps(evaluation: Evaluation) -> str:
    if not evaluation.maps:
        return ""
    return MAP_NOTE + event_maps.legend() + "".join(maps.to_html() for maps in evaluation.maps)


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
    looks = {}
    for number, name in enumerate(evaluation.scores["forecaster"].values):
        own = score_figures.look(number)
        looks[str(name)] = own
        looks[f"{name}{BEFORE}"] = own | {"linestyle": ":", "markerfacecolor": "white"}
    return _shown(
        score_figures.reliability_diagram(curves, looks=looks),
        "reliability diagram: observed frequency against stated probability",
        "All lead times together. On the diagonal, of what is called 30 % three in ten come; below it the "
        "forecaster is too sure. Below, how many pixels were given each probability.",
    )


def reliability_curves(scores: xr.Dataset) -> dict[str, dict[str, tuple[Floats, Floats, Floats]]]:
    """Panels of `score_figures.reliability_diagram`, all lead times and events together."""
    curves: dict[str, dict[str, tuple[Floats, Floats, Floats]]] = {}
    for label, prefix in {"": "sum_probability_", BEFORE: "sum_uncalibrated_probability_"}.items():
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
                    panel[f"{name}{label}"] = (
                        stated.sel(at).values / count,
                        events.sel(at).values / count,
                        count,
                    )
    return {title: panel for title, panel in curves.items() if panel}


def _ensembles(evaluation: Evaluation) -> str:
    scores = evaluation.scores
    if "sum_ensemble_ranks" not in scores:
        return ""
    ranks = scores["sum_ensemble_ranks"].sum(["event", LEAD_TIME])
    counts, numbers = {}, {}
    for number, name in enumerate(map(str, scores["forecaster"].values)):
        own = ranks.sel(forecaster=name).values.astype(np.float64)
        if own.sum():
            counts[name], numbers[name] = own[: np.flatnonzero(own)[-1] + 1], number
    if not counts:
        return ""
    members = scores.sel(forecaster=list(counts))
    titles = {"crps": "CRPS (mm/h)", "spread_error_ratio": "spread / RMSE of the mean", "spread": "spread (mm/h)"}
    panels = {title: members[name] for name, title in titles.items() if name in members}
    return _shown(
        score_figures.lead_curves(members, panels, numbers=numbers),
        "scores of the ensembles against lead time",
        "CRPS is the error of the whole ensemble, in mm/h. A ratio below 1 says that the members differ less than "
        "they err: they are too sure.",
    ) + _shown(
        score_figures.rank_histograms(counts, numbers=numbers),
        "rank histograms of the ensembles",
        "All lead times. High ends: it often rains harder or less than in any member.",
    )


def _users(evaluation: Evaluation) -> str:
    """What forgives a shift, what falls in half an hour or an hour, and when the rain begins."""
    scores, goal, panels = evaluation.scores, evaluation.threshold, {}
    if "pooled_csi" in scores:
        for pool in scores["pool"].values:
            title = f"CSI of maxima of {pool} × {pool} pixels, ≥ {goal:g} mm/h"
            panels[title] = scores["pooled_csi"].sel(pool=pool, threshold=goal)
    if "accumulated_csi" in scores:
        for minutes in scores["accumulation"].values:
            amount = scores["amount"].values[0]
            title = f"CSI of {minutes:g} min sums, ≥ {amount:g} mm"
            panels[title] = scores["accumulated_csi"].sel(accumulation=minutes, amount=amount)
    if "onset_csi" in scores:
        panels[f"CSI of onsets to ± a step, ≥ {goal:g} mm/h"] = scores["onset_csi"].sel(threshold=goal)
    if not panels:
        return ""
    return _shown(
        score_figures.lead_curves(scores, panels), "CSI of pooled rain, of sums and of onsets against lead time"
    )


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
