"""Other ConvLSTM implementations, which `convlstm.py` compares with raincast's."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn


class PlainCell(nn.Module):
    """A ConvLSTM as it is commonly written: one convolution on [input, state] at each step."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.conv = nn.Conv2d(channels + hidden, 4 * hidden, 5, padding=2)

    def forward(
        self, xs: list[Tensor], state: tuple[Tensor, Tensor] | None
    ) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
        """Run the layer; the steps are a list."""
        if state is None:
            zeros = xs[0].new_zeros(xs[0].shape[0], self.hidden, *xs[0].shape[2:])
            state = (zeros, zeros)
        h, c = state
        outputs = []
        for x in xs:
            i, f, z, o = self.conv(torch.cat([x, h], 1)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(z)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        return outputs, (h, c)


class OpenNetwork(nn.Module):
    """A typical encoder-forecaster of open repositories, for the sizes of `STAGES_OPEN`.

    Its coarsest forecaster layer reads frames of zeros.
    """

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            [nn.Conv2d(1, 16, 3, 1, 1), nn.Conv2d(64, 64, 3, 2, 1), nn.Conv2d(96, 96, 3, 2, 1)]
        )
        self.encoder = nn.ModuleList([PlainCell(16, 64), PlainCell(64, 96), PlainCell(96, 96)])
        self.forecaster = nn.ModuleList([PlainCell(96, 64), PlainCell(96, 96), PlainCell(96, 96)])
        self.up = nn.ModuleList(
            [nn.Conv2d(64, 16, 3, 1, 1), nn.ConvTranspose2d(96, 96, 4, 2, 1), nn.ConvTranspose2d(96, 96, 4, 2, 1)]
        )
        self.head = nn.Conv2d(16, 1, 1)

    def forward(self, frames: Tensor, num_steps: int) -> Tensor:
        """Forecast (B, T, 1, H, W) → (B, num_steps, 1, H, W)."""
        xs = list(frames.unbind(1))
        states = []
        for down, cell in zip(self.down, self.encoder, strict=True):
            xs, state = cell([F.leaky_relu(down(x), 0.2) for x in xs], None)
            states.append(state)
        xs = [torch.zeros_like(xs[0])] * num_steps
        for up, cell, state in zip(reversed(self.up), reversed(self.forecaster), reversed(states), strict=True):
            xs, _ = cell(xs, state)
            xs = [F.leaky_relu(up(x), 0.2) for x in xs]
        return torch.stack([self.head(x) for x in xs], 1)


def keras_layer(kernel: int, rows: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Return Keras' `ConvLSTM2D` for `rows` (B, T, H, W, C) with as many filters; needs KERAS_BACKEND=torch.

    Returns None if Keras is not installed or does not run, with a message; the other figures are valid without it.
    """
    try:
        import keras
    except ImportError:
        return None
    try:
        with keras.device(str(rows.device)):
            layer: Callable[[Tensor], Tensor] = keras.layers.ConvLSTM2D(
                rows.shape[-1], kernel, padding="same", return_sequences=True, data_format="channels_last"
            )
            layer(rows)
    except RuntimeError as error:
        Console(stderr=True).print(f"no Keras: {error}", markup=False)
        return None
    return layer
