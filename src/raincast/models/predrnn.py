"""PredRNN (Wang et al. 2017, NeurIPS; 2021, arXiv 2103.09504): ST-LSTMs that read their own forecasts."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from raincast.models.frames import check_frames, framewise, from_patches, initialise_output, pad
from raincast.models.layers.recurrent import Initialisation
from raincast.models.layers.st_lstm import STLSTM


class PredRNN(nn.Module):
    """One stack of ST-LSTMs at one resolution that forecasts frame by frame.

    Frames are cut into patch × patch squares whose pixels become channels. At each step the stack reads a frame,
    and a 1×1 convolution of the top layer's hidden state gives the next one. After the past frames, each forecast
    frame is the input of the next step. Output and input therefore have the same channels: `in_channels` and
    `out_channels` are equal.

    `forward` has no teacher forcing, in training either: after the last input frame the network reads its own
    forecasts, and its one-step forecasts of the input frames are not returned. `unroll` is for training schemes
    that choose which frames the network reads (scheduled sampling). Grids of any size work: they are padded at the
    bottom and right with 0, no rain, and the output is cropped to the input's size.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        *,
        patch: int = 4,
        hidden_channels: int = 128,
        num_layers: int = 4,
        input_kernel: int = 5,
        state_kernel: int = 5,
        initialisation: Initialisation = "xavier",
        forget_bias: float = 1.0,
    ) -> None:
        """Build the network; all layers are `hidden_channels` wide, as they share one memory.

        See `STLSTM` for the other arguments. Raises ValueError if `in_channels` and `out_channels` differ or
        `patch` is below 1.
        """
        super().__init__()
        if in_channels != out_channels:
            raise ValueError(
                f"PredRNN reads its own forecasts, so in_channels={in_channels} and out_channels={out_channels} "
                "must be equal. Make them equal, or take an encoder-forecaster, which needs no input to forecast."
            )
        if patch < 1:
            raise ValueError(f"Need patch >= 1, found {patch}.")
        self.in_channels = in_channels
        self.patch = patch
        self.stride = patch
        self.stack = STLSTM(
            in_channels * patch**2,
            hidden_channels,
            input_kernel=input_kernel,
            state_kernel=state_kernel,
            num_layers=num_layers,
            initialisation=initialisation,
            forget_bias=forget_bias,
        )
        self.head = nn.Conv2d(hidden_channels, out_channels * patch**2, 1)
        initialise_output(self.head)

    def forward(self, x: Float[Tensor, "b t c h w"], num_steps: int) -> Float[Tensor, "b steps out h w"]:
        """Forecast the `num_steps` frames after the past frames `x`, in network units."""
        check_frames(x, self.in_channels, num_steps)
        H, W = x.shape[-2:]
        hidden, state = self.stack(self._patches(x))
        outputs = [framewise(self.head, hidden[:, -1:])]
        while len(outputs) < num_steps:
            hidden, state = self.stack(outputs[-1], state)
            outputs.append(framewise(self.head, hidden))
        return from_patches(torch.cat(outputs, dim=1), self.patch)[..., :H, :W]

    def unroll(
        self,
        x: Float[Tensor, "b t c h w"],
        truth: Float[Tensor, "b steps c h w"],
        use_truth: Bool[Tensor, "b n"],
    ) -> Float[Tensor, "b t_and_steps_less_1 c h w"]:
        """Return one-step forecasts of all frames of `x` and `truth` but the first, in network units.

        `use_truth` (B, T + steps − 2) selects which frames after the first are read from the data; the others are
        read from the forecast, as are all pixels where `truth` is NaN.
        """
        check_frames(x, self.in_channels, truth.shape[1])
        H, W = x.shape[-2:]
        frames = torch.cat([x, truth[:, :-1]], dim=1)
        known = self._patches(frames.isnan().to(x.dtype)) == 0
        frames = self._patches(frames.nan_to_num(0.0))
        read, state, outputs = frames[:, :1], None, []
        for step in range(frames.shape[1]):
            hidden, state = self.stack(read, state)
            outputs.append(framewise(self.head, hidden))
            if step + 1 < frames.shape[1]:
                chosen = use_truth[:, step, None, None, None, None] & known[:, step + 1 : step + 2]
                read = torch.where(chosen, frames[:, step + 1 : step + 2], outputs[-1])
        return from_patches(torch.cat(outputs, dim=1), self.patch)[..., :H, :W]

    def _patches(self, frames: Tensor) -> Tensor:
        return F.pixel_unshuffle(pad(frames, self.stride), self.patch)
