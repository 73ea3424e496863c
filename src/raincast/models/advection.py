"""Rain that moves with its flow, and changes on its way as an encoder-forecaster says."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from raincast.models.encoder_forecaster import PyramidEncoderForecaster
from raincast.models.frames import check_frames, check_future, pad
from raincast.models.layers.convlstm import ConvLSTM
from raincast.models.layers.recurrent import CellFactory
from raincast.models.optical_flow import displacements, find_flow, move


class AdvectingForecaster(nn.Module):
    """The pyramid encoder-forecaster in coordinates that move with the rain.

    The flow of the past frames is found (`optical_flow.find_flow`) and taken to be steady. Past frames of rain are
    moved along it to where their rain is at the newest one, so that what the network sees change is growth
    and decay alone. What it says, s_t, is the change since then of the rain that is now at each pixel:

        forecast_t(p) = newest(p − D_t(p)) + s_t(p − D_t(p)),

    with the displacement D_t of t steps. Each forecast moves the newest frame once: it stays sharp. It starts as
    s = 0, plain extrapolation. What flows in from outside is no rain, changed as the nearest edge. Channels beside
    the rain stay where they are. Grids of any size work: they are padded as those of the network inside.

    Network units are about logarithms of rates. Interpolation between pixels is of exp(`log_rate`·u) − 1, about
    the rates themselves, as the mean of logarithms is less rain than the mean of rates.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        *,
        future_channels: int = 0,
        stages: Sequence[Mapping[str, Any]],
        patch: int = 1,
        head_channels: int | None = None,
        cell: CellFactory = ConvLSTM,
        log_rate: float = 10.0,
    ) -> None:
        """`log_rate`: by how much the logarithm of the rate rises over a network unit; 0 interpolates these. The
        rest is of the `PyramidEncoderForecaster` inside.
        """
        super().__init__()
        if out_channels != 1:
            raise ValueError(
                f"AdvectingForecaster moves the rain itself: out_channels={out_channels} must be 1. "
                "Take head=rate, or for classes and quantiles another model, as model=convlstm_small."
            )
        if log_rate < 0:
            raise ValueError(f"log_rate={log_rate} must be 0 or more; the dBZ scale has 10, the log scale 7.")
        self.in_channels = in_channels
        self.future_channels = future_channels
        self.log_rate = log_rate
        self.change = PyramidEncoderForecaster(
            in_channels,
            out_channels,
            future_channels=future_channels,
            stages=stages,
            patch=patch,
            head_channels=head_channels,
            cell=cell,
        )
        self.stride = self.change.stride
        last = self.change.head[-1]
        assert isinstance(last, nn.Conv2d)
        nn.init.zeros_(last.weight)  # no change to begin with; its bias is 0 already

    def forward(
        self, x: Float[Tensor, "b t c h w"], num_steps: int, future: Float[Tensor, "b steps f h w"] | None = None
    ) -> Float[Tensor, "b steps 1 h w"]:
        """Past frames, the rain first, and what is known of the frames to come → these, all in network units."""
        check_frames(x, self.in_channels, num_steps)
        future = check_future(x, self.future_channels, num_steps, future)
        T, (H, W) = x.shape[1], x.shape[-2:]
        x, future = pad(x, self.stride), None if future is None else pad(future, self.stride)
        rain = x[:, :, 0].to(
            torch.promote_types(x.dtype, torch.float32)
        )  # half precision has no 3 digits behind the pixel
        far = displacements(find_flow(rain), max(num_steps, T - 1))
        past = torch.cat([self._moved(rain[:, :-1], far[:, : T - 1].flip(1)), rain[:, -1:]], dim=1)
        seen = torch.cat([past[:, :, None].to(x.dtype), x[:, :, 1:]], dim=2)
        change = self.change(seen, num_steps, future)[:, :, 0].to(rain.dtype)
        far = far[:, :num_steps]
        moved = self._moved(rain[:, -1:].expand(-1, num_steps, -1, -1), far)
        return (moved + _each(change, far, border=True))[:, :, None, :H, :W].to(x.dtype)

    def _moved(self, rain: Tensor, far: Tensor) -> Tensor:
        """Frames (B, T, H, W) of rain, each by its own displacement."""
        if not rain.shape[1]:
            return rain
        if not self.log_rate:
            return _each(rain, far)
        return _each((self.log_rate * rain).expm1(), far).log1p() / self.log_rate


def _each(frames: Tensor, far: Tensor, *, border: bool = False) -> Tensor:
    return move(frames.flatten(0, 1)[:, None], far.flatten(0, 1), border=border)[:, 0].view(frames.shape)
