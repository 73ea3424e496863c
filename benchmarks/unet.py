"""A U-Net in the place of the ConvLSTMs inside `LagrangianCore`: the control of its architecture.

    python benchmarks/pretrain.py knmi=data/knmi … --exclude mch --minutes 17 --unet --out unet/without_mch.npz
    python benchmarks/leave_one_out.py mch=data/mch2015 --weights unet --unet

It has as many weights, reads the same numbers, and forecasts each lead time by itself (Ronneberger et al. 2015,
arXiv 1505.04597).
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raincast.models.frames import pad
from raincast.models.lagrangian import LagrangianCore

PAST = 4
WIDTHS = (40, 56, 84)


class UNet(nn.Module):
    """Past frames (B, T, 4, H, W) and `ahead` (B, L, 5, H, W) → features (B, L, N, H, W)."""

    stride = 2 ** len(WIDTHS)

    def __init__(self, features: int) -> None:
        super().__init__()
        widths = (2 * PAST + 5, *WIDTHS)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in pairwise(widths))
        self.here = nn.ModuleList(nn.Conv2d(b, b, 3, padding=1) for b in WIDTHS)
        upwards = pairwise((*WIDTHS[::-1], features))
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 4, 2, 1) for a, b in upwards)
        self.joined = nn.ModuleList(nn.Conv2d(2 * b, b, 3, padding=1) for b in WIDTHS[-2::-1])
        self.head = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, past: Tensor, steps: int, ahead: Tensor) -> Tensor:
        """Forecast the features of each lead time; a missing oldest frame is 0 and not observed."""
        H, W = past.shape[-2:]
        seen = F.pad(past[:, -PAST:, :2], (0, 0, 0, 0, 0, 0, max(0, PAST - past.shape[1]), 0)).flatten(1, 2)
        x = torch.cat([seen[:, None].expand(-1, steps, -1, -1, -1), ahead], dim=2).flatten(0, 1)
        x = pad(x, self.stride)
        skips = []
        for down, here in zip(self.down, self.here, strict=True):
            x = F.leaky_relu(here(F.leaky_relu(down(x), 0.2)), 0.2)
            skips.append(x)
        for up, joined, skip in zip(self.up, [*self.joined, None], [*skips[-2::-1], None], strict=True):
            x = F.leaky_relu(up(x), 0.2)
            if joined is not None:
                x = F.leaky_relu(joined(torch.cat([x, skip], dim=1)), 0.2)
        return self.head(x)[..., :H, :W].unflatten(0, (-1, steps))


def with_unet(core: LagrangianCore) -> LagrangianCore:
    """Put a U-Net in the place of the ConvLSTMs of a core."""
    core.recurrent = UNet(core.pixelwise.in_channels - 8)  # type: ignore[assignment]
    core.stride = UNet.stride
    return core
