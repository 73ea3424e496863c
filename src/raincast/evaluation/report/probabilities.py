"""The sections of the page about probabilities and about members; empty if the scores are missing."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast.evaluation.report import html_tables as tables
from raincast.evaluation.report import probability_figures as figures
from raincast.evaluation.report import score_figures
from raincast.evaluation.report.score_figures import look, shown
from raincast.evaluation.report.tables import lead_minutes
from raincast.metrics.registry import SCORES
from raincast.plotting.page import Block, Folded, Text
from raincast.schema import LEAD_TIME

Floats = npt.NDArray[np.float64]
RocPanels = dict[str, dict[str, tuple[Floats, Floats, float]]]

BEFORE = ", before calibration"
BINS = "sum_probability_"
RANKS = "ensemble_ranks"
SPREAD_NOTE = (
    "Spread of the members divided by the error of their mean. Below 1 the ensemble is underdispersive: the "
    "members differ less than they err."
)


def probabilities(scores: xr.Dataset) -> list[Block]:
    """Return the figures of reliability and discrimination."""
    return reliability(scores) + roc(scores)


def reliability(scores: xr.Dataset) -> list[Block]:
    """Return the figure of observed frequency against forecast probability."""
    curves = reliability_curves(scores)
    if not curves:
        return []
    looks = {}
    for number, name in enumerate(scores["forecaster"].values):
        own = look(number)
        looks[str(name)] = own
        looks[f"{name}{BEFORE}"] = own | {"linestyle": ":", "markerfacecolor": "white"}
    return [
        shown(
            figures.reliability_diagram(curves, looks=looks),
            "reliability diagram: observed frequency against forecast probability",
            "All lead times together. On the diagonal, 30 % means that it rains in three of ten cases; below it "
            "the forecaster is overconfident. Lower panel: the number of pixels with each probability.",
        )
    ]


def reliability_curves(scores: xr.Dataset) -> dict[str, dict[str, tuple[Floats, Floats, Floats]]]:
    """Return the panels of `figures.reliability_diagram`, all lead times and events together."""
    curves: dict[str, dict[str, tuple[Floats, Floats, Floats]]] = {}
    for label, prefix in {"": BINS, BEFORE: "sum_uncalibrated_probability_"}.items():
        names = [f"{prefix}{name}" for name in ("probability", "events", "forecasts")]
        if any(name not in scores for name in names):
            continue
        stated, events, number = (scores[name].sum(["event", LEAD_TIME]).astype(float) for name in names)
        for t in scores["threshold"].values:
            panel = curves.setdefault(f"rain ≥ {t:g} mm/h", {})
            for name in scores["forecaster"].values:
                at = {"forecaster": name, "threshold": t}
                count = number.sel(at).values
                if count.sum() == 0:  # gives no probabilities
                    continue
                with np.errstate(invalid="ignore", divide="ignore"):
                    panel[f"{name}{label}"] = (
                        stated.sel(at).values / count,
                        events.sel(at).values / count,
                        count,
                    )
    return {title: panel for title, panel in curves.items() if panel}


def roc(scores: xr.Dataset) -> list[Block]:
    """Return the ROC at the middle lead time; those at the first and the last are collapsed."""
    if any(f"{BINS}{name}" not in scores for name in ("forecasts", "events", "probability")):
        return []
    numbers = {str(name): number for number, name in enumerate(scores["forecaster"].values)}
    last = scores.sizes[LEAD_TIME] - 1

    def drawn(lead: int, note: str = "") -> list[Block]:
        curves = roc_curves(scores, lead)
        if not curves:
            return []
        at = f"ROC at +{lead_minutes(scores)[lead]:g} min"
        return [shown(figures.roc_diagram(curves, numbers=numbers), at, f"{at}. {note}")]

    middle = drawn(
        last // 2,
        "Each point warns at another probability: from never (lower left) to always. The further to the "
        "upper left, the better the forecaster separates events from non-events; on the dashed line it does not.",
    )
    others = [block for lead in sorted({0, last} - {last // 2}) for block in drawn(lead)]
    return [*middle, *([Folded("at the first and the last lead time", others)] if others else [])]


def roc_curves(scores: xr.Dataset, lead: int) -> RocPanels:
    """Return the panels of `probability_figures.roc_diagram` at lead index `lead`, all events together."""
    import torch

    from raincast.metrics import probabilistic

    summed = {
        name: scores[f"{BINS}{name}"].isel({LEAD_TIME: lead}).sum("event") for name in ("forecasts", "events")
    }
    curves: RocPanels = {}
    for t in scores["threshold"].values:
        panel = {}
        for name in map(str, scores["forecaster"].values):
            at = {"forecaster": name, "threshold": t}
            forecasts, events = (torch.tensor(part.sel(at).values) for part in summed.values())
            if not forecasts.any():  # gives no probabilities
                continue
            unused = torch.zeros(forecasts.shape, dtype=torch.float64)
            sums = probabilistic.BinSums(forecasts, events, unused, unused)
            pofd, pod = probabilistic.roc(sums)
            panel[name] = pofd.numpy(), pod.numpy(), float(probabilistic.roc_area(sums))
        if panel:
            curves[f"rain ≥ {t:g} mm/h"] = panel
    return curves


def ensembles(scores: xr.Dataset) -> list[Block]:
    """Return table, curves, rank histograms and spectra of all forecasters that have members."""
    if f"sum_{RANKS}" not in scores:
        return []
    numbers = {str(name): number for number, name in enumerate(scores["forecaster"].values)}
    counted = scores[f"sum_{RANKS}"].sum(["event", LEAD_TIME, "rank"]).values > 0
    names = [name for name, has in zip(numbers, counted, strict=True) if has]
    if not names:
        return []
    members = scores.sel(forecaster=names)
    numbers = {name: numbers[name] for name in names}
    return [
        *_table(members),
        *_curves(members, numbers),
        *_ranks(members, numbers),
        *_spectra(members, numbers),
    ]


def _of(members: xr.Dataset, name: str) -> dict[str, xr.DataArray]:
    """Return a score of members by its subject (pixels, box sizes, accumulations), as far as it exists."""
    before = "sum_" if name == RANKS else ""
    pixels, areal, accumulated = (f"{before}{of}{name}" for of in ("", "areal_", "accumulated_"))
    found = {"pixels": members[pixels]} if pixels in members else {}
    if areal in members:
        found |= {f"{km:g} km": members[areal].sel(areal_scale=km) for km in members["areal_scale"].values}
    if accumulated in members:
        found |= {
            f"{minutes:g} min sums": members[accumulated].sel(accumulation=minutes)
            for minutes in members["accumulation"].values
        }
    return found


def _table(members: xr.Dataset) -> list[Block]:
    """Return means over lead times, one column per score."""
    columns = []
    for name in (
        "crps",
        "fair_crps",
        "areal_crps",
        "areal_fair_crps",
        "accumulated_crps",
        "accumulated_fair_crps",
    ):
        columns += _columns(members, name, name.removeprefix("areal_").removeprefix("accumulated_"))
    for name in ("energy_score", "variogram_score"):
        columns += _columns(members, name, name)
    if not columns:
        return []
    note = (
        "Means over the lead times. CRPS takes the members as the distribution; fair CRPS does not favour large "
        "ensembles. Columns in km are mean rates of adjacent boxes, those in mm are amounts. Energy and variogram "
        "score judge all boxes of a map at once: whether it rains together where it should."
    )
    return [tables.score_table(members, columns), Text(note, note=True)]


def _columns(members: xr.Dataset, name: str, plain: str) -> list[tables.Column]:
    if name not in members:
        return []
    label = SCORES[plain].label
    if "areal_scale" in members[name].dims:
        at = [(f"{label} {km:g} km", {"areal_scale": km}) for km in members["areal_scale"].values]
    elif "accumulation" in members[name].dims:
        at = [(f"{label} {m:g} min, mm", {"accumulation": m}) for m in members["accumulation"].values]
    else:
        at = [(SCORES[plain].heading, {})]
    return [tables.Column.of(members, name, heading=heading, **where) for heading, where in at]


def _curves(members: xr.Dataset, numbers: Mapping[str, int]) -> list[Block]:
    parts: list[Block] = []
    for name, title, note in (
        ("crps", "CRPS", "The error of the whole ensemble, in mm/h; of sums in mm."),
        ("spread_error_ratio", "spread / RMSE of the mean", SPREAD_NOTE),
        ("spread", "spread", "In mm/h; of sums in mm."),
    ):
        panels = {f"{title}, {what}": values for what, values in _of(members, name).items()}
        if panels:
            figure = score_figures.lead_curves(members, panels, numbers=numbers)
            parts.append(shown(figure, f"{title} of the members against lead time", note))
    return parts


def _ranks(members: xr.Dataset, numbers: Mapping[str, int]) -> list[Block]:
    """Return histograms of pixels; those of boxes and accumulations are collapsed."""
    note = "All lead times. High ends: the observation often lies outside all members."
    pixels, *others = [
        shown(
            figures.rank_histograms(rank_counts(ranks), numbers=numbers, unit=what),
            f"rank histograms of the ensembles, {what}",
            f"{what.capitalize()}. {note}",
        )
        for what, ranks in _of(members, RANKS).items()
    ]
    return [pixels, *([Folded("of boxes and accumulations", others)] if others else [])]


def rank_counts(ranks: xr.DataArray) -> dict[str, Floats]:
    """Return each forecaster's rank histogram over all lead times and events, up to its own last rank."""
    total = ranks.sum([dim for dim in ranks.dims if dim not in ("forecaster", "rank")])
    counts = {
        str(name): total.sel(forecaster=name).values.astype(np.float64) for name in total["forecaster"].values
    }
    return {name: own[: np.flatnonzero(own)[-1] + 1] for name, own in counts.items() if own.any()}


def _spectra(members: xr.Dataset, numbers: Mapping[str, int]) -> list[Block]:
    if "member_spectrum" not in members:
        return []
    figure = score_figures.spectra(members, score_figures.sharp_leads(members), prefix="member_", numbers=numbers)
    note = "A member is one possible map of rain: it should have the power of the observation at every wavelength."
    return [shown(figure, "power spectra of single members, and of the observation", note)]
