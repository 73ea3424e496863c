"""A trained network as a `Forecaster`."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from raincast.forecaster import NETWORK, Gives, Prediction, Query, ThresholdError
from raincast.metrics.calibration import Calibration
from raincast.models.heads import Head
from raincast.models.inputs import RAIN_ALONE, Inputs, predict_output
from raincast.transforms import Transform

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}
"""What a network's convolutions may run in; transform and head are float32."""

Maps = npt.NDArray[np.float32]


class NetworkForecaster:
    """A trained network as a `Forecaster`. It refuses another number of frames than `input_steps`.

    `head` gives its output channels their meaning, `inputs` lists its input channels, `calibration` is applied to
    its probabilities. `precision` is one of `PRECISIONS`: bf16 is faster where the processor multiplies in it, and
    less exact.
    """

    def __init__(
        self,
        network: nn.Module,
        head: Head,
        transform: Transform,
        *,
        name: str,
        input_steps: int,
        lead_steps: int,
        step_minutes: float,
        inputs: Inputs = RAIN_ALONE,
        device: str | torch.device = "cpu",
        calibration: Calibration | None = None,
        precision: str = "float32",
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision={precision}: choose one of {', '.join(PRECISIONS)}.")
        self.precision = PRECISIONS[precision]
        self.network = network.to(device).eval()
        self.head = head
        self.transform = transform
        self.name = name
        self.input_steps = input_steps
        self.lead_steps = lead_steps
        self.step_minutes = step_minutes
        self.inputs = inputs
        self.device = torch.device(device)
        self.calibration = calibration

    @property
    def gives(self) -> Gives:
        """Probabilities if its head has them or they were calibrated."""
        return Gives(probabilities=self.head.probabilistic or self.calibration is not None)

    @torch.inference_mode()
    def predict(self, query: Query) -> Prediction:
        """Rates, and probabilities where it gives them, from one run of the network.

        ValueError for frames or covariates that it was not trained on; ThresholdError for thresholds that its head
        or its calibration does not know.
        """
        if query.rain.shape[1:3] != (self.input_steps, 1):
            raise ValueError(
                f"{self.name} takes (batch, {self.input_steps} frames, 1 channels, y, x), "
                f"found {query.rain.shape}."
            )
        covariates = {name: self._tensor(values) for name, values in query.covariates.items()}
        reduced = torch.autocast(self.device.type, dtype=self.precision, enabled=self.precision != torch.float32)
        with reduced:
            output = predict_output(
                self.network,
                self.transform,
                self._tensor(query.rain),
                query.num_steps,
                inputs=self.inputs,
                covariates=covariates,
            )
        rates = query.at_lead_times(self.head.rates(output, self.transform).cpu().numpy())
        done = (NETWORK,) * len(rates)
        if not query.thresholds or not self.gives.probabilities:
            return Prediction(rates, done=done)
        stated, calibrated = self._probabilities(output, query.thresholds)
        return Prediction(
            rates,
            probabilities=query.at_lead_times(stated if calibrated is None else calibrated),
            thresholds=query.thresholds,
            uncalibrated=query.at_lead_times(stated) if query.uncalibrated and calibrated is not None else None,
            done=done,
        )

    def _probabilities(self, output: Tensor, thresholds: Sequence[float]) -> tuple[Maps, Maps | None]:
        """(B, num_steps, K, H, W), as the head states them and as they are calibrated."""
        try:
            stated = self.head.exceedance(output, thresholds, self.transform).cpu().numpy()
            return stated, None if self.calibration is None else self.calibration.apply(stated, thresholds)
        except ValueError as error:
            raise ThresholdError(str(error)) from error

    def _tensor(self, values: Maps) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(self.device)
