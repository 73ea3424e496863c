"""`python evaluate.py calibrate=true`: calibration of the network's probabilities on the validation windows."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raincast import assembly
from raincast.commands import report

if TYPE_CHECKING:
    from raincast.data.radar import RadarData
    from raincast.forecaster import Forecaster
    from raincast.forecasting.network import NetworkForecaster
    from raincast.metrics.probabilistic import Calibration

log = logging.getLogger(__name__)

NAME = "calibrated.ckpt"


def calibrate(
    checkpoint: assembly.Checkpoint,
    network: "NetworkForecaster",
    data: "RadarData",
    thresholds: list[float],
    *,
    split: str,
    run_dir: Path,
) -> assembly.Checkpoint:
    """Fit the calibration and return the copy of `checkpoint` in `run_dir` that holds it; `network` gets it, too.

    Raises ValueError if the network may have been trained on the validation windows, or they are to be scored.
    """
    if split == "val":
        raise ValueError(
            "calibrate=true fits on the validation windows, on which it would look better than it is: score it "
            "with split=test."
        )
    if data.split_hash != checkpoint.info["split_hash"]:
        raise ValueError(
            f"These windows are not those that {checkpoint.path} was split by, so its training may have seen the "
            "ones to calibrate on. Leave data.split out and give the archive that it was trained on; evaluate.py "
            "without calibrate=true takes any archive."
        )
    network.calibration = None  # an earlier one would be calibrated again
    calibration = fit(network, data, thresholds)
    path = assembly.write_calibrated(checkpoint, calibration, run_dir / NAME)
    network.calibration = calibration
    left = [
        f"{threshold:g}"
        for threshold, row in zip(thresholds, calibration.knots, strict=True)
        if any(knots is None for knots in row)
    ]
    if left:
        log.warning(
            "At %s mm/h the validation windows have too little rain at some lead times: there the probabilities "
            "remain uncalibrated.",
            ", ".join(left),
        )
    return assembly.read_checkpoint(path)


def fit(forecaster: "Forecaster", data: "RadarData", thresholds: list[float]) -> "Calibration":
    """Fit the calibration of `forecaster`, which has none yet, on the validation windows of `data`.

    The probability of a forecaster without probabilities is 1 where its rate reaches the threshold, else 0. Raises
    ValueError if there is no validation window.
    """
    import torch

    from raincast.evaluation import query_of
    from raincast.forecaster import exceeded
    from raincast.metrics.probabilistic import NUM_BINS, BinSums, Calibration, bin_sums, pool

    total: BinSums | None = None
    num_windows = len(data.eval_places("val"))
    with report.Bar("calibrating") as bar:
        advance = bar.advance_of(num_windows)
        for batch in data.eval_batches("val"):
            query = query_of(
                batch,
                lead_steps=data.lead_steps,
                step_minutes=data.archive.step_minutes,
                grid=data.archive.grid,
                thresholds=thresholds,
            )
            prediction = forecaster.predict(query)
            stated = prediction.probabilities
            if stated is None:
                stated = exceeded(prediction.rates, thresholds)
            sums = pool(
                bin_sums(
                    torch.from_numpy(stated), batch["target"], batch["target_mask"], thresholds, num_bins=NUM_BINS
                )
            )
            total = sums if total is None else BinSums(*(a + b for a, b in zip(total, sums, strict=True)))
            advance(len(stated))
    if total is None:
        raise ValueError("There is no validation window to calibrate on: change data.split.")
    fitted_on = {
        "split": "val",
        "split_hash": data.split_hash,
        "archive": data.archive.path.name,
        "num_windows": num_windows,
        "lead_minutes": [float(data.archive.step_minutes * k) for k in range(1, data.lead_steps + 1)],
        "events": np.asarray(total.events.sum(-1)).tolist(),
    }
    return Calibration.fit(total, thresholds, fitted_on=fitted_on)
