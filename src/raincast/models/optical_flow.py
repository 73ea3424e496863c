"""Optical flow of rain and semi-Lagrangian advection in torch, without weights.

Motion fields are (N, 2, H, W) with the channels y and x, in pixels per step: rain at p was at p − motion(p) one
step before. Displacements have the same form, over several steps.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from raincast.models.frames import pad

POOL = 2
"""Side in pixels of the blocks averaged before the flow is estimated: motion varies slowly, noise does not."""

LEVELS = 4
"""Number of resolutions at which the flow is estimated, each half the one before."""

WINDOW_KM = 16.0
"""Standard deviation of the window within which rain is assumed to move alike."""

SMALLEST_WINDOW = 3.0
"""Lower bound of that standard deviation, in pixels of the level."""

WIDE = 0.05
"""Weight of the whole frame relative to the window: where a window is dry, rain elsewhere decides."""

RIDGE = 1e-2
"""Regularisation towards the coarser level's motion, as a share of the mean squared gradient."""

ITERATIONS = 2
"""Number of corrections at each level."""

FEW_PIXELS = 16.0
"""Number of wet pixels at which the motion is trusted by half: a few may have appeared and vanished, not moved."""

LARGEST_CORRECTION = 2.0
"""Largest correction in pixels of the level."""


def find_flow(
    frames: Float[Tensor, "n t h w"], observed: Float[Tensor, "n t h w"], pixel_km: Float[Tensor, " n"]
) -> Float[Tensor, "n 2 h w"]:
    """Return the motion common to all pairs of successive frames, in pixels per step.

    It is 0 for a single frame or without rain. `frames` are logarithms of rain, 0 where dry; `observed` is 1 where
    they were observed. It is the least-squares solution (Lucas and Kanade 1981) of the brightness constancy
    equation

        ∇f · δ = f(p − d, t − 1) − f(p, t)

    over a window and all pairs, from coarse to fine (Bouguet 2001): at each level the older frames are moved by
    the current estimate d of the motion, and δ is added to it. The result is smoothed with the window, weighted by
    how well the rain determines it.
    """
    N, T, H, W = frames.shape
    if T < 2:
        return frames.new_zeros(N, 2, H, W)
    multiple = POOL * 2 ** (LEVELS - 1)
    frames, known = F.avg_pool2d(pad(frames, multiple), POOL), F.avg_pool2d(pad(observed, multiple), POOL)
    flow: Tensor | None = None
    for level in reversed(range(LEVELS)):
        scaled = F.avg_pool2d(frames, 2**level)
        pairs = F.avg_pool2d(known, 2**level)
        pairs = pairs[:, 1:] * pairs[:, :-1]
        window = (WINDOW_KM / (pixel_km * POOL * 2**level)).clamp_min(SMALLEST_WINDOW)
        flow = torch.zeros_like(scaled[:, :2]) if flow is None else 2.0 * _finer(flow)
        for _ in range(ITERATIONS):
            flow = _correct(scaled, pairs, flow, window)
    assert flow is not None
    wet = (frames > 0).to(frames.dtype).sum((-2, -1)).mean(1) * POOL**2
    trusted = wet / (wet + FEW_PIXELS)
    return trusted[:, None, None, None] * POOL * _finer(flow)[..., :H, :W]


def displacements(flow: Float[Tensor, "n 2 h w"], num_steps: int) -> Float[Tensor, "n steps 2 h w"]:
    """Return the distance that rain arriving at each pixel has travelled, after each step of a steady flow.

    D_1 = d and D_t(p) = d(p) + D_{t−1}(p − d(p)): semi-Lagrangian, followed backwards along the flow (Germann and
    Zawadzki 2002). Outside the frame the flow is that of the edge.
    """
    reached = [flow]
    while len(reached) < num_steps:
        reached.append(flow + move(reached[-1], flow, border=True))
    return torch.stack(reached, dim=1)


def move(
    fields: Float[Tensor, "n c h w"], displacement: Float[Tensor, "n 2 h w"], *, border: bool = False
) -> Float[Tensor, "n c h w"]:
    """Return `fields` at p − displacement(p), bilinear; outside the frame 0, or the edge's value with `border`."""
    H, W = fields.shape[-2:]
    y, x = _origin(displacement)
    # centres of pixels; the frame extends from −1 to 1 between the outer edges of its pixels
    grid = torch.stack([(2.0 * x + 1.0) / W - 1.0, (2.0 * y + 1.0) / H - 1.0], dim=-1)
    mode = "border" if border else "zeros"
    return F.grid_sample(fields, grid, mode="bilinear", padding_mode=mode, align_corners=False)


def inside(displacement: Float[Tensor, "n 2 h w"]) -> Float[Tensor, "n 1 h w"]:
    """Return 1 where p − displacement(p) lies within the frame, else 0."""
    H, W = displacement.shape[-2:]
    y, x = _origin(displacement)
    return ((y >= 0) & (y <= H - 1) & (x >= 0) & (x <= W - 1)).to(displacement.dtype)[:, None]


def smooth(fields: Float[Tensor, "n c h w"], spread: Tensor) -> Tensor:
    """Smooth `fields` with a Gaussian of standard deviation `spread` in pixels, which may differ between samples.

    With `spread` (N,) the result is (N, C, H, W), with (N, L) it is (N, L, C, H, W). Fields are reflected at the
    edges.
    """
    H, W = fields.shape[-2:]
    margin = min(16, H - 1, W - 1)
    padded = F.pad(fields, (margin,) * 4, mode="reflect") if margin else fields
    h, w = padded.shape[-2:]
    like = {"device": fields.device, "dtype": fields.dtype}
    squares = torch.fft.fftfreq(h, **like)[:, None].square() + torch.fft.rfftfreq(w, **like)[None].square()
    response = torch.exp(-2.0 * torch.pi**2 * spread.square()[..., None, None, None] * squares)
    if spread.ndim == 2:
        padded = padded[:, None]
    means: Tensor = torch.fft.irfft2(torch.fft.rfft2(padded) * response, s=(h, w))
    return means[..., margin : margin + H, margin : margin + W]


def _correct(frames: Tensor, pairs: Tensor, flow: Tensor, window: Tensor) -> Tensor:
    """Return `flow` (N, 2, h, w) plus its least-squares correction, smoothed."""
    before = move(frames[:, :-1], flow, border=True)
    difference = frames[:, 1:] - before
    gy, gx = _gradients((frames[:, 1:] + before) / 2.0)
    products = [gy * gy, gy * gx, gx * gx, gy * difference, gx * difference]
    sums = torch.stack([(product * pairs).sum(1) for product in products], dim=1) * inside(flow)
    mean = sums.mean((2, 3), keepdim=True)
    yy, yx, xx, ye, xe = (smooth(sums, window) + WIDE * mean).unbind(1)
    ridge = RIDGE * (mean[:, 0] + mean[:, 2]) + 1e-8  # avoids division by zero in dry frames
    yy, xx = yy.clamp_min(0.0) + ridge, xx.clamp_min(0.0) + ridge
    determinant = (yy * xx - yx * yx).clamp_min(1e-12)
    step = torch.stack([(yx * xe - xx * ye) / determinant, (yx * ye - yy * xe) / determinant], dim=1)
    flow = flow + step.clamp(-LARGEST_CORRECTION, LARGEST_CORRECTION)
    confidence = (yy + xx)[:, None]
    weighted = smooth(torch.cat([flow * confidence, confidence], dim=1), window)
    return weighted[:, :2] / weighted[:, 2:].clamp_min(1e-9)


def _gradients(fields: Tensor) -> tuple[Tensor, Tensor]:
    padded = F.pad(fields, (1, 1, 1, 1), mode="replicate")
    gy = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2.0
    gx = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2.0
    return gy, gx


def _origin(displacement: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows and columns (N, H, W) that each pixel's value comes from."""
    H, W = displacement.shape[-2:]
    rows = torch.arange(H, dtype=displacement.dtype, device=displacement.device)[:, None]
    columns = torch.arange(W, dtype=displacement.dtype, device=displacement.device)
    return rows - displacement[:, 0], columns - displacement[:, 1]


def _finer(flow: Tensor) -> Tensor:
    return F.interpolate(flow, scale_factor=2.0, mode="bilinear", align_corners=False)
