"""The motion of rain from its last frames, and advection along it: tensors, without weights.

Motion fields are (N, 2, H, W), the channels y and x, in pixels a step: rain at p was at p − motion(p) one step
before. Displacements have the same form, over several steps.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from raincast.models.frames import pad

LEVELS = 4
"""Resolutions that motion is looked for at, each half the one below: 8 pixels are 1 at the coarsest."""

WINDOW = 9
"""Pixels, of each level, along the box within which all rain moves alike; twice over, so that its edge is soft."""

WIDE = 0.1
"""Weight of the whole frame's rain against that of the window: where it is dry the rain elsewhere decides."""

RIDGE = 1e-2
"""Share of the mean squared gradient that holds a motion near the one of the coarser level."""

ITERATIONS = 2
"""Corrections at each level."""

LARGEST_STEP = 2.0
"""Pixels, of the level, that a correction may be."""


def find_flow(frames: Float[Tensor, "n t h w"]) -> Float[Tensor, "n 2 h w"]:
    """The motion that all pairs of successive frames have in common; 0 for a single frame, or without rain.

    Lucas and Kanade's least squares (1981) of the brightness constancy

        ∇f · δ = f(p − d, t − 1) − f(p, t)

    over a window and all pairs, from coarse to fine (Bouguet 2001): at each level the older frames are moved by
    the motion d known so far, and δ is added to it. Missing rain counts as no rain.
    """
    N, T, H, W = frames.shape
    if T < 2:
        return frames.new_zeros(N, 2, H, W)
    padded = pad(frames, 2 ** (LEVELS - 1))
    flow: Tensor | None = None
    for level in reversed(range(LEVELS)):
        scaled = F.avg_pool2d(padded, 2**level)
        flow = torch.zeros_like(scaled[:, :2]) if flow is None else 2.0 * _finer(flow)
        for _ in range(ITERATIONS):
            flow = flow + _correction(scaled, flow)
        flow = _blur(flow, 5)
    assert flow is not None
    return flow[..., :H, :W]


def displacements(flow: Float[Tensor, "n 2 h w"], num_steps: int) -> Float[Tensor, "n steps 2 h w"]:
    """How far what arrives at each pixel has come, after each step of a steady flow.

    D_1 = d and D_t(p) = d(p) + D_{t−1}(p − d(p)): semi-Lagrangian, followed back along the flow (Germann and
    Zawadzki 2002). Outside the frame the flow is that of the edge.
    """
    reached = [flow]
    while len(reached) < num_steps:
        reached.append(flow + move(reached[-1], flow, border=True))
    return torch.stack(reached, dim=1)


def move(
    fields: Float[Tensor, "n c h w"], displacement: Float[Tensor, "n 2 h w"], *, border: bool = False
) -> Float[Tensor, "n c h w"]:
    """`fields` at p − displacement(p), bilinear; outside the frame 0, or with `border` the value of the edge."""
    H, W = fields.shape[-2:]
    y, x = _origin(displacement)
    # pixels' centres, with the frame from −1 to 1 between its pixels' outer edges
    grid = torch.stack([(2.0 * x + 1.0) / W - 1.0, (2.0 * y + 1.0) / H - 1.0], dim=-1)
    mode = "border" if border else "zeros"
    return F.grid_sample(fields, grid, mode="bilinear", padding_mode=mode, align_corners=False)


def _correction(frames: Tensor, flow: Tensor) -> Tensor:
    """δ (N, 2, h, w): what least squares add to `flow`."""
    before = move(frames[:, :-1], flow, border=True)
    difference = frames[:, 1:] - before
    gy, gx = _gradients((frames[:, 1:] + before) / 2.0)
    products = [gy * gy, gy * gx, gx * gx, gy * difference, gx * difference]
    sums = torch.stack([product.sum(1) for product in products], dim=1) * _inside(flow)
    mean = sums.mean((2, 3), keepdim=True)
    yy, yx, xx, ye, xe = (_blur(sums, WINDOW) + WIDE * mean).unbind(1)
    ridge = RIDGE * (mean[:, 0] + mean[:, 2]) + 1e-8  # dry frames divide by no zero
    yy, xx = yy + ridge, xx + ridge
    determinant = yy * xx - yx * yx
    step = torch.stack([(yx * xe - xx * ye) / determinant, (yx * ye - yy * xe) / determinant], dim=1)
    return step.clamp(-LARGEST_STEP, LARGEST_STEP)


def _gradients(fields: Tensor) -> tuple[Tensor, Tensor]:
    padded = F.pad(fields, (1, 1, 1, 1), mode="replicate")
    gy = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2.0
    gx = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2.0
    return gy, gx


def _origin(displacement: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns (N, H, W) that the displacement comes from."""
    H, W = displacement.shape[-2:]
    rows = torch.arange(H, dtype=displacement.dtype, device=displacement.device)[:, None]
    columns = torch.arange(W, dtype=displacement.dtype, device=displacement.device)
    return rows - displacement[:, 0], columns - displacement[:, 1]


def _inside(flow: Tensor) -> Tensor:
    """1 where rain comes from within the frame, (N, 1, h, w): of what flows in nothing is known."""
    H, W = flow.shape[-2:]
    y, x = _origin(flow)
    return ((y >= 0) & (y <= H - 1) & (x >= 0) & (x <= W - 1)).to(flow.dtype)[:, None]


def _finer(flow: Tensor) -> Tensor:
    return F.interpolate(flow, scale_factor=2.0, mode="bilinear", align_corners=False)


def _blur(fields: Tensor, size: int) -> Tensor:
    """A box of odd `size` twice over; pixels beyond the frame count as 0."""
    for _ in range(2):
        fields = F.avg_pool2d(fields, size, stride=1, padding=size // 2)
    return fields
