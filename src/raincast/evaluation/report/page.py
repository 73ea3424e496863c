"""The page of an evaluation, one HTML file: tables, curves, diagrams, and events on maps.

`scores` is the Dataset of an evaluation, `scores.nc`. A section appears if its data exist.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import xarray as xr
from matplotlib.figure import Figure

from raincast.evaluation.intervals import events_text, sentence
from raincast.evaluation.report import event_maps, probabilities, score_figures
from raincast.evaluation.report import html_tables as tables
from raincast.evaluation.report.event_maps import EventMaps
from raincast.evaluation.report.score_figures import shown
from raincast.evaluation.report.tables import lead_minutes
from raincast.metrics.registry import SCORES
from raincast.plotting.page import Block, Command, Facts, Folded, Heading, Section, Text, write_page

ERRORS = {
    "mean_error": "mean error (mm/h)",
    "mae": "mean absolute error (mm/h)",
    "rmse": "root mean squared error (mm/h)",
    "correlation": "correlation",
}
AT_A_GLANCE = ("csi", "frequency_bias", "fss", "rmse")
MAP_NOTE = (
    "The events at which the first forecaster did best, in the middle and worst, of those with at least a tenth "
    "of the rain of the mean event. Move the slider, or focus it and press the arrow keys."
)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The content of the page.

    `threshold` (mm/h) is that of single-threshold figures. `by_event` and `by_hour` hold a few scores and
    `num_windows` by `event` or `hour`. `facts` are rows by heading; `config` is the resolved config of the
    training.
    """

    scores: xr.Dataset
    threshold: float
    facts: Mapping[str, Sequence[tuple[str, str]]]
    by_event: xr.Dataset | None = None
    by_hour: xr.Dataset | None = None
    config: str = ""
    maps: Sequence[EventMaps] = field(default_factory=tuple)


def write_report(evaluation: Evaluation, path: Path, *, title: str) -> Path:
    """Write report.html: one file that opens from disk and needs no network, with the verdict first."""
    extra = {"style": "event_maps.css", "script": "event_maps.js"} if evaluation.maps else {}
    return write_page(path, title=title, lead=sentence(evaluation.scores), sections=_sections(evaluation), **extra)


def _sections(evaluation: Evaluation) -> Iterator[Section]:
    """Yield the sections in reading order."""
    scores, threshold = evaluation.scores, evaluation.threshold
    made = {
        "Scores": _tables(scores, threshold),
        "Events on maps": _maps(evaluation),
        "Against lead time": _curves(scores),
        "Performance": _performance(scores),
        "Probabilities": probabilities.probabilities(scores),
        "Ensembles": probabilities.ensembles(scores),
        "Scales": _scales(scores, threshold),
        "Neighbourhoods, amounts, onsets": _users(scores, threshold),
        "By event": _by(evaluation.by_event, "event", threshold),
        "By hour of day": _by(evaluation.by_hour, "hour", threshold),
        "Training and data": _facts(evaluation),
    }
    yield from (Section(name, blocks) for name, blocks in made.items() if blocks)


def _maps(evaluation: Evaluation) -> list[Block]:
    if not evaluation.maps:
        return []
    maps = [maps.block() for maps in evaluation.maps]
    return [Text(MAP_NOTE, note=True), event_maps.legend(), *maps]


def _facts(evaluation: Evaluation) -> list[Block]:
    minutes = lead_minutes(evaluation.scores)
    parts: list[Block] = []
    for title, facts in evaluation.facts.items():
        parts += [Heading(title), Facts(facts)]
    leads = f"{minutes[0]:g} to {minutes[-1]:g} min, {minutes.size} of them"
    parts += [Heading("Scoring"), Facts([("lead times", leads)])]
    if evaluation.config:
        parts.append(Folded("the config that the network was trained with", [Command(evaluation.config)]))
    return parts


def _tables(scores: xr.Dataset, threshold: float) -> list[Block]:
    """Return the scores of all forecasters and their differences."""
    note = "Means over the lead times at which a score is defined; the best of each column is bold."
    if "confidence" in scores.attrs and scores.sizes["event"] > 1:  # one event has no interval
        note += (
            f" Below each is its {100 * float(scores.attrs['confidence']):g} % interval, from resampling the "
            f"{events_text(scores)}."
        )
    others: list[Block] = []
    for t in scores["threshold"].values:
        others += [Heading(f"At ≥ {t:g} mm/h"), *tables.difference_tables(scores, t)]
        others.append(tables.score_table(scores, tables.at_threshold(scores, t)))
    return [
        tables.score_table(scores, tables.by_threshold(scores, "csi")),
        Text(note, note=True),
        Heading(f"Is it better? CSI at ≥ {threshold:g} mm/h, mean over the lead times"),
        *tables.difference_tables(scores, threshold),
        Heading(f"Further scores at ≥ {threshold:g} mm/h"),
        tables.score_table(scores, tables.at_threshold(scores, threshold)),
        Folded("at every threshold", others),
    ]


def _curves(scores: xr.Dataset) -> list[Block]:
    """Return CSI, bias and errors against lead time."""
    parts: list[Block] = [
        _lead_curves(scores, "csi", "CSI", "1 is perfect. Shades are the intervals of the table."),
        _lead_curves(
            scores,
            "frequency_bias",
            "bias",
            "Above 1 a forecaster predicts such rain more often than it occurs, below 1 less often.",
        ),
    ]
    errors = {title: name for name, title in ERRORS.items() if name in scores}
    if errors:
        panels = {title: scores[name] for title, name in errors.items()}
        figure = score_figures.lead_curves(scores, panels, bands=_bands(scores, errors))
        parts.append(shown(figure, "errors of the rain rate against lead time"))
    return parts


def _lead_curves(scores: xr.Dataset, name: str, title: str, note: str) -> Block:
    """Return curves with one panel per threshold."""
    at = {f"{title}, rain ≥ {t:g} mm/h": t for t in scores["threshold"].values}
    bands = {}
    if f"{name}_interval" in scores:
        ends = scores[f"{name}_interval"]
        bands = {key: (ends.sel(threshold=t)[0], ends.sel(threshold=t)[1]) for key, t in at.items()}
    figure = score_figures.lead_curves(
        scores, {key: scores[name].sel(threshold=t) for key, t in at.items()}, bands=bands
    )
    return shown(figure, f"{title} of each forecaster against lead time", note)


def _bands(scores: xr.Dataset, names: Mapping[str, str]) -> dict[str, tuple[xr.DataArray, xr.DataArray]]:
    found = {key: f"{name}_interval" for key, name in names.items() if f"{name}_interval" in scores}
    return {key: (scores[name][0], scores[name][1]) for key, name in found.items()}


def _performance(scores: xr.Dataset) -> list[Block]:
    """Return POD against success ratio."""
    if "pod" not in scores or "far" not in scores:
        return []
    return [
        shown(
            score_figures.performance_diagram(scores, scores["threshold"].values.tolist()),
            "performance diagram: POD against success ratio",
            "The upper right corner is perfect (Roebber 2009). Each line follows a forecaster through its lead "
            "times, from the large marker on; curves are of equal CSI, dashed rays of equal frequency bias.",
        )
    ]


def _users(scores: xr.Dataset, threshold: float) -> list[Block]:
    """Return scores that tolerate displacement, scores of amounts, and scores of the onset of rain."""
    panels = {}
    if "pooled_csi" in scores:
        for pool in scores["pool"].values:
            title = f"CSI of maxima of {pool} × {pool} pixels, ≥ {threshold:g} mm/h"
            panels[title] = scores["pooled_csi"].sel(pool=pool, threshold=threshold)
    if "accumulated_csi" in scores:
        for minutes in scores["accumulation"].values:
            amount = scores["amount"].values[0]
            title = f"CSI of {minutes:g} min sums, ≥ {amount:g} mm"
            panels[title] = scores["accumulated_csi"].sel(accumulation=minutes, amount=amount)
    if "onset_csi" in scores:
        panels[f"CSI of onsets to ± a step, ≥ {threshold:g} mm/h"] = scores["onset_csi"].sel(threshold=threshold)
    if not panels:
        return []
    return [
        shown(
            score_figures.lead_curves(scores, panels),
            "CSI of pooled rain, of sums and of onsets against lead time",
        )
    ]


def _scales(scores: xr.Dataset, threshold: float) -> list[Block]:
    """Return FSS by scale, and spectra."""
    parts: list[Block] = []
    if "fss" in scores:
        fss = {
            f"FSS, {scale:g} km, rain ≥ {threshold:g} mm/h": scores["fss"].sel(threshold=threshold, scale=scale)
            for scale in scores["scale"].values
        }
        parts.append(
            shown(
                score_figures.lead_curves(scores, fss),
                "fractions skill score against lead time, by scale",
                "Agreement of the fractions of wet pixels in boxes of this size.",
            )
        )
    if "spectrum" in scores:
        parts.append(
            shown(
                score_figures.spectra(scores, score_figures.sharp_leads(scores)),
                "radially averaged power spectra of forecasts and observation",
                "Below the observed curve the forecast lacks detail: it is blurred. The effective resolution is "
                "the wavelength below which less than half of the observed power is left.",
            )
        )
    return parts


def _by(scores: xr.Dataset | None, dim: str, threshold: float) -> list[Block]:
    """Return a few scores by `dim`, event or hour, over all lead times, above the numbers of windows."""
    if scores is None or scores.sizes[dim] < 2:
        return []
    said = {"event": "Events in time order", "hour": "Hours of the newest input frame, UTC"}[dim]
    return [
        shown(
            by_figure(scores, dim, threshold),
            f"scores of each forecaster by {dim}",
            f"{said}, all lead times; bars: number of windows.",
        )
    ]


def by_figure(scores: xr.Dataset, dim: str, threshold: float) -> Figure:
    """Plot the scores of `AT_A_GLANCE` that exist; FSS at the middle scale."""
    panels, ratios = {}, []
    for name in AT_A_GLANCE:
        if name not in scores:
            continue
        values, title = scores[name], SCORES[name].label
        if "scale" in values.dims:
            scale = scores["scale"].values[scores.sizes["scale"] // 2]
            values, title = values.sel(scale=scale), f"{title}, {scale:g} km"
        if "threshold" in values.dims:
            values, title = values.sel(threshold=threshold), f"{title}, rain ≥ {threshold:g} mm/h"
        else:
            title = f"{title}, mm/h"
        panels[title] = values
        ratios += [title] * (name == "frequency_bias")
    return score_figures.dot_panels(
        panels, dim, ratios=ratios, support=scores["num_windows"].values, unit="windows"
    )
