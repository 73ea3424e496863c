"""Scores of validation: accumulated over all windows and ranks, logged, and as skill against baselines."""

import difflib
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics import Metric

from raincast.metrics import categorical, continuous
from raincast.metrics.categorical import Contingency, check_thresholds, contingency
from raincast.metrics.continuous import ErrorSums, error_sums
from raincast.metrics.registry import SCORES

Scores = Mapping[str, Tensor]
"""Scores from `RainScores.compute`: csi, hss … (K thresholds, T leads), mae, rmse … (T), NaN if undefined."""

MEANS = {"csi": "csi", "hss": "hss", "pod": "pod", "far": "far", "bias": "frequency_bias"}
"""Logged name → name of the categorical score."""


class RainScores(Metric):
    """Contingency and error sums per lead time over everything seen; ratios are formed once, at the end.

    States are int64 counts and float64 sums that merge across ranks by addition, so that the scores of N
    ranks are those of one process. `compute()` gives float64 tensors: csi, pod, far, frequency_bias, hss,
    ets, f1 of shape (K thresholds, T leads), mean_error, mae and rmse in mm/h, and both correlations (T);
    and also the sums, under their names in `Contingency` (K, T) and `ErrorSums` (T).
    Undefined is NaN.
    """

    full_state_update = False

    def __init__(self, thresholds: Sequence[float], num_leads: int) -> None:
        """`thresholds` are in mm/h, increasing; `num_leads` is the number T of lead times of the forecasts."""
        super().__init__()
        check_thresholds(thresholds)
        self.thresholds = tuple(thresholds)
        self.num_leads = num_leads
        counts = torch.zeros(len(thresholds), num_leads, dtype=torch.int64)
        sums = torch.zeros(num_leads, dtype=torch.float64)
        for name in Contingency._fields:
            self.add_state(name, counts.clone(), dist_reduce_fx="sum")
        for name in ErrorSums._fields:
            self.add_state(name, sums.long() if name == "count" else sums.clone(), dist_reduce_fx="sum")

    @property
    def update_called(self) -> bool:
        """Always true: before any update the sums are zero and the scores NaN, which needs no warning."""
        return True

    def update(
        self,
        pred: Float[Tensor, "b t c h w"],
        target: Float[Tensor, "b t c h w"],
        mask: Bool[Tensor, "b t c h w"],
    ) -> None:
        """Add a batch in mm/h; pixels where `mask` is False are left out."""
        if pred.shape[1] != self.num_leads:
            raise ValueError(f"Expected {self.num_leads} lead times (num_leads), found {pred.shape[1]}.")
        self._add(contingency(pred, target, mask, self.thresholds))
        self._add(error_sums(pred, target, mask))

    def _add(self, sums: Contingency | ErrorSums) -> None:
        for name, per_event in sums._asdict().items():
            setattr(self, name, getattr(self, name) + per_event.sum(0))

    def compute(self) -> dict[str, Tensor]:
        """Return scores and sums by name."""
        counts = Contingency(*(getattr(self, name) for name in Contingency._fields))
        errors = ErrorSums(*(getattr(self, name) for name in ErrorSums._fields))
        return {
            "csi": categorical.csi(counts),
            "pod": categorical.pod(counts),
            "far": categorical.far(counts),
            "frequency_bias": categorical.frequency_bias(counts),
            "hss": categorical.hss(counts),
            "ets": categorical.ets(counts),
            "f1": categorical.f1(counts),
            "mean_error": continuous.mean_error(errors),
            "mae": continuous.mae(errors),
            "rmse": continuous.rmse(errors),
            "correlation": continuous.correlation(errors),
            "uncentred_correlation": continuous.uncentred_correlation(errors),
            **counts._asdict(),
            **errors._asdict(),
        }


def validation_scores(
    scores: Scores, references: Mapping[str, Scores], *, thresholds: Sequence[float], step_minutes: float
) -> dict[str, float]:
    """Return everything that validation logs of `scores` except the loss, by name.

    For each threshold: means over lead times, `bias_error` (1 − min(bias, 1/bias), 0 at best) and the CSI at each
    lead time (`lead/csi_1mm_030min`). Against each of the `references`, baselines on the same windows:
    `skill_csi_1mm_NAME`, the mean over lead times of (CSI − its CSI) / (1 − its CSI); `useful_lead_1mm_NAME` in
    minutes (see `useful_lead`); `ahead_1mm_NAME`, the share of lead times with a CSI above its CSI;
    `skill_mse_NAME`, the mean over lead times of 1 − MSE / its MSE.
    """
    named = {"val/mae": _mean(scores["mae"]), "val/rmse": _mean(scores["rmse"])}
    for index, threshold in enumerate(thresholds):
        named |= _of_threshold({key: scores[name][index] for key, name in MEANS.items()}, threshold, step_minutes)
        for name, reference in references.items():
            ends = f"{_text(threshold)}_{name}"
            own, other = scores["csi"][index], reference["csi"][index].to(scores["csi"].device)
            named[f"val/skill_csi_{ends}"] = _mean((own - other) / (1 - other))
            named[f"val/ahead_{ends}"] = _share_ahead(own, other)
            named[f"val/useful_lead_{ends}"] = useful_lead(own, other, step_minutes)
    for name, reference in references.items():
        other = reference["rmse"].to(scores["rmse"].device)
        named[f"val/skill_mse_{name}"] = _mean(1 - (scores["rmse"] / other) ** 2)
    return named


def score_names(
    baselines: Sequence[str], *, thresholds: Sequence[float], lead_steps: int, step_minutes: float
) -> list[str]:
    """Return the names of everything that validation logs, from which a goal can be chosen."""
    grid, leads = torch.zeros(len(thresholds), lead_steps), torch.zeros(lead_steps)
    scores = dict.fromkeys(MEANS.values(), grid) | {"mae": leads, "rmse": leads}
    named = validation_scores(
        scores, dict.fromkeys(baselines, scores), thresholds=thresholds, step_minutes=step_minutes
    )
    return ["val/loss", *named]


def better(name: str) -> str | None:
    """Return "max" if the score logged as `name` is better when higher, "min" when lower, None for neither.

    A frequency bias is best at 1, so it cannot rank checkpoints; `val/bias_error_…` can.
    """
    if name.startswith(("val/loss", "val/bias_error_")):
        return "min"
    logged = name.removeprefix("val/").partition("_")[0]
    score = SCORES.get(MEANS.get(logged, logged))
    return "max" if score is None else {1: "max", -1: "min"}.get(score.better)


def check_goal(
    goal: str,
    mode: str,
    *,
    baselines: Sequence[str],
    thresholds: Sequence[float],
    lead_steps: int,
    step_minutes: float,
) -> None:
    """Raise ValueError unless validation logs the score `goal` and it improves towards its `mode` (max or min)."""
    names = score_names(baselines, thresholds=thresholds, lead_steps=lead_steps, step_minutes=step_minutes)
    if goal not in names:
        near = difflib.get_close_matches(goal, names, n=8)
        raise ValueError(
            f"metrics.goal={goal} is not logged; with metrics.thresholds={list(thresholds)} and "
            f"baselines={list(baselines)} there are {', '.join(near or names)}."
        )
    direction = better(goal)
    if direction is None:
        raise ValueError(
            f"metrics.goal={goal} is best at 1 and cannot rank checkpoints: take "
            f"{goal.replace('bias', 'bias_error')}."
        )
    if mode != direction:
        raise ValueError(f"metrics.goal={goal} is better at its {direction}: set metrics.goal_mode={direction}.")


def useful_lead(own: Tensor, other: Tensor, step_minutes: float) -> float:
    """Return the last lead time in minutes before the CSI `own` (T,) falls to a baseline's; 0 if it starts there.

    Lead times at which either is undefined are skipped; NaN if all are.
    """
    defined = own.isfinite() & other.isfinite()
    if not defined.any():
        return float("nan")
    ahead = own > other
    fallen = (defined & ~ahead).nonzero().flatten()
    end = int(fallen[0]) if fallen.numel() else len(own)
    before = ahead[:end].nonzero().flatten()
    return step_minutes * (int(before[-1]) + 1) if before.numel() else 0.0


def _of_threshold(per_lead: Scores, threshold: float, step_minutes: float) -> dict[str, float]:
    text = _text(threshold)
    named = {f"val/{key}_{text}": _mean(values) for key, values in per_lead.items()}
    bias = per_lead["bias"]
    named[f"val/bias_error_{text}"] = _mean(1 - torch.minimum(bias, 1 / bias))
    for lead, csi in enumerate(per_lead["csi"], start=1):
        named[f"lead/csi_{text}_{lead * step_minutes:03g}min"] = float(csi)
    return named


def _share_ahead(own: Tensor, other: Tensor) -> float:
    defined = own.isfinite() & other.isfinite()
    return float((own > other)[defined].double().mean())


def _text(threshold: float) -> str:
    return f"{float(threshold):g}mm"


def _mean(per_lead: Tensor) -> float:
    """Return the mean over the lead times at which the score is defined; NaN if there are none."""
    return float(torch.nanmean(per_lead))
