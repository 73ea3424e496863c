"""All pixel scores of a whole data set, accumulated across batches and ranks."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics import Metric

from raincast.metrics import categorical, continuous
from raincast.metrics.categorical import Contingency, check_thresholds, contingency
from raincast.metrics.continuous import ErrorSums, error_sums


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
