"""A trained network as a `Forecaster`."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from raincast.forecaster import NETWORK, Gives, Prediction, Query, ThresholdError, share_of_members
from raincast.forecasting.fit import check_step
from raincast.forecasting.tiles import Tiling
from raincast.metrics.probabilistic import Calibration
from raincast.models.distribution import DECISIONS, DistributionHead
from raincast.models.frames import PhysicalNetwork
from raincast.models.heads import Head
from raincast.models.inputs import RAIN_ALONE, Inputs, predict_output
from raincast.models.lagrangian import LagrangianForecaster, Tile
from raincast.transforms import Transform


def box_forecaster() -> "NetworkForecaster":
    """Return the bundled network on the CPU, under the name `box`."""
    from raincast.models.weights import box
    from raincast.transforms import RateScaling

    state, described = box()
    settings = {key: value for key, value in described["config"]["model"].items() if key != "_target_"}
    network = LagrangianForecaster(**settings)
    network.load_state_dict(state)
    return NetworkForecaster(
        network,
        DistributionHead(),
        RateScaling(),
        name="box",
        input_steps=4,
        lead_steps=12,
        step_minutes=5.0,
        inputs=Inputs(observed=True),
    )


PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}
"""Precisions of a network's convolutions; transform and head always use float32."""

Maps = npt.NDArray[np.float32]


class NetworkForecaster:
    """A trained network as a `Forecaster`; it accepts only the number of frames and the step of its training.

    A physical network accepts any of them. `head` defines the meaning of the output channels, `inputs` lists the
    input channels, and `calibration` is applied to the probabilities. `precision` is one of `PRECISIONS`: bf16 is
    less exact, and faster on processors that multiply in it. `with_members` makes it give members.
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
        self.num_members = self.seed = 0  # see `with_members`
        self.ensemble = False

    @property
    def gives(self) -> Gives:
        """Probabilities if the head has them or they were calibrated; rules of a head that decides rates."""
        return Gives(
            members=self.num_members > 0,
            probabilities=self.head.probabilistic or self.calibration is not None,
            rules=DECISIONS if isinstance(self.head, DistributionHead) else (),
            whole_grid=isinstance(self.network, LagrangianForecaster),
        )

    @property
    def physical(self) -> bool:
        """True if the network takes any time step, pixel size and number of frames."""
        return isinstance(self.network, PhysicalNetwork)

    @torch.inference_mode()
    def predict(self, query: Query) -> Prediction:
        """Return rates, and probabilities if it gives them, from one run of the network.

        Raises ValueError for a step, frames or covariates that it was not trained on; ThresholdError for
        thresholds that its head or calibration does not know.
        """
        if self.physical:
            return self._predict_observed(query)
        return self._predict(query)

    def _predict_observed(self, query: Query) -> Prediction:
        """Predict on the smallest rectangle that contains all observed pixels; the result is 0 elsewhere."""
        observed = np.asarray(np.isfinite(query.rain).any(axis=(0, 1, 2)))
        rows, columns = np.flatnonzero(observed.any(axis=1)), np.flatnonzero(observed.any(axis=0))
        if not rows.size or observed.shape == (rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]):
            return self._predict(query)
        y, x = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
        inner = self._predict(query.crop(y, x))

        def whole(maps: Maps | None) -> Maps | None:
            if maps is None:
                return None
            made = np.zeros((*maps.shape[:-2], *observed.shape), maps.dtype)
            made[..., y, x] = maps
            return made

        rates = whole(inner.rates)
        assert rates is not None
        return replace(
            inner,
            rates=rates,
            members=whole(inner.members),
            probabilities=whole(inner.probabilities),
            uncalibrated=whole(inner.uncalibrated),
        )

    def _predict(self, query: Query) -> Prediction:
        if query.rain.shape[2] != 1 or not (self.physical or query.rain.shape[1] == self.input_steps):
            raise ValueError(
                f"{self.name} takes (batch, {self.input_steps} frames, 1 channels, y, x), "
                f"found {query.rain.shape}."
            )
        if not self.physical:
            check_step(query.step_minutes, self.step_minutes, "the query")
        covariates = {name: self._tensor(values) for name, values in query.covariates.items()}
        if self.physical:
            covariates["scale"] = self._scale(query)
        tiles = self._tiles(query)
        reduced = torch.autocast(self.device.type, dtype=self.precision, enabled=self.precision != torch.float32)
        with reduced:
            output = predict_output(
                self.network,
                self.transform,
                self._tensor(query.rain),
                query.num_steps,
                inputs=self.inputs,
                covariates=covariates,
                **({"tiles": tiles} if tiles else {}),
            )
        head = self.head if query.rule is None else self._head_by(query.rule)
        # the head works on lead times apart: one at a time takes less memory
        leads = [output[:, lead : lead + 1] for lead in range(query.num_steps)] if tiles else [output]
        if isinstance(head, DistributionHead):
            stepped = [head.stepped(lead) for lead in leads]
            head = stepped[0]
        done = (NETWORK,) * len(query.rain)
        wants_members = self.ensemble or (query.members and self.gives.members)
        members = self._members(query, head, output, covariates) if wants_members else None
        if self.ensemble and members is not None:
            return Prediction(
                members.mean(axis=2, keepdims=True),
                members if query.members else None,
                share_of_members(members, query.thresholds) if query.thresholds else None,
                query.thresholds,
                done=done,
            )
        rates = query.at_lead_times(_joined(head.rates(lead, self.transform) for lead in leads))
        if not query.thresholds or not self.gives.probabilities:
            return Prediction(rates, members, done=done)
        stated, calibrated = self._probabilities(head, leads, query.thresholds)
        return Prediction(
            rates,
            members,
            probabilities=query.at_lead_times(stated if calibrated is None else calibrated),
            thresholds=query.thresholds,
            uncalibrated=query.at_lead_times(stated) if query.uncalibrated and calibrated is not None else None,
            done=done,
        )

    def _tiles(self, query: Query) -> list[Tile]:
        """Return the tiles of the layers with weights; none if the whole grid fits in memory or in one tile."""
        shape = query.rain.shape[-2:]
        if query.tile_shape is None or not isinstance(self.network, LagrangianForecaster):
            return []
        tiling = Tiling(query.tile_shape, query.tile_overlap, self.network.stride)
        if tiling.num_tiles(shape) == (1, 1):
            return []
        return [Tile(y, x, torch.from_numpy(weight).to(self.device)) for y, x, weight in tiling.tiles(shape)]

    def _members(self, query: Query, head: Head, output: Tensor, covariates: Mapping[str, Tensor]) -> Maps:
        assert isinstance(self.network, LagrangianForecaster) and isinstance(head, DistributionHead)
        rain = self._tensor(query.rain)[:, :, 0]
        x = torch.stack([rain.nan_to_num(0.0), rain.isfinite().to(rain.dtype)], dim=2)
        noise = self.network.noise(
            x, query.num_steps, covariates["scale"], num_members=self.num_members, seed=self.seed
        )
        made: Maps = query.at_lead_times(head.members(output, noise, self.num_members).cpu().numpy())
        return made

    def as_ensemble(self, num_members: int) -> "NetworkForecaster":
        """Return the same network, named NAME_members, whose rates and probabilities are those of its members."""
        other = self.with_members(num_members)
        other.ensemble, other.name = True, f"{self.name}_members"
        return other

    def with_members(self, num_members: int, seed: int = 0) -> "NetworkForecaster":
        """Return the same network with members; raises ValueError if it cannot give them."""
        if not (isinstance(self.head, DistributionHead) and isinstance(self.network, LagrangianForecaster)):
            raise ValueError(f"members={num_members}: {self.name} gives no members. Use model=lagrangian, or box.")
        if num_members < 2:
            raise ValueError(f"members={num_members}: an ensemble has at least 2.")
        other = copy.copy(self)
        other.num_members, other.seed = num_members, seed
        return other

    def by_rule(self, rule: str) -> "NetworkForecaster":
        """Return the same network under the name NAME_RULE, with rates by `rule`.

        Raises ValueError if it is unknown.
        """
        other = copy.copy(self)
        other.head, other.name = self._head_by(rule), f"{self.name}_{rule}"
        return other

    def _head_by(self, rule: str) -> Head:
        if rule not in self.gives.rules:
            raise ValueError(f"rates_by={rule}: {self.name} knows {', '.join(self.gives.rules) or 'none'}.")
        assert isinstance(self.head, DistributionHead)
        return replace(self.head, rates_by=rule)

    def _scale(self, query: Query) -> Tensor:
        """Return each sample's time step in minutes and pixel size in km.

        Raises ValueError if the size is unknown.
        """
        if query.pixel_km is None:
            raise ValueError(f"{self.name} works in physical units: the query needs grid or pixel_km.")
        return torch.tensor([[query.step_minutes, query.pixel_km]] * len(query.rain), device=self.device)

    def _probabilities(
        self, head: Head, leads: Sequence[Tensor], thresholds: Sequence[float]
    ) -> tuple[Maps, Maps | None]:
        """Return the head's probabilities (B, num_steps, K, H, W), and the calibrated ones, if any."""
        try:
            stated = _joined(head.exceedance(lead, thresholds, self.transform) for lead in leads)
            return stated, None if self.calibration is None else self.calibration.apply(stated, thresholds)
        except ValueError as error:
            raise ThresholdError(str(error)) from error

    def _tensor(self, values: Maps) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(self.device)


def _joined(leads: Iterable[Tensor]) -> Maps:
    """Return maps of successive lead times as one array (B, L, …)."""
    maps: list[Maps] = [lead.cpu().numpy() for lead in leads]
    return maps[0] if len(maps) == 1 else np.concatenate(maps, axis=1)
