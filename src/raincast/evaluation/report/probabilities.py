"""The section of the page about probabilities; empty if the scores are missing."""

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast.evaluation.report import probability_figures as figures
from raincast.evaluation.report.score_axes import look, shown
from raincast.evaluation.report.tables import lead_minutes
from raincast.plotting.page import Block, Folded
from raincast.schema import LEAD_TIME

Floats = npt.NDArray[np.float64]
RocPanels = dict[str, dict[str, tuple[Floats, Floats, float]]]

BEFORE = ", before calibration"
BINS = "sum_probability_"


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
