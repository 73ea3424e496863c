"""A ConvLSTM encoder-forecaster in Lagrangian coordinates that predicts the error of S-PROG's forecast."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import EllipsisType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from raincast.models.encoder_forecaster import PyramidEncoderForecaster
from raincast.models.frames import PhysicalNetwork, check_frames, framewise
from raincast.models.layers import SLOPE, CellFactory
from raincast.models.layers.convlstm import ConvLSTM
from raincast.models.members import correlated_noise
from raincast.models.optical_flow import displacements, find_flow, inside, move, smooth
from raincast.models.persistence import BLOCK, POOL, corrected, smoothed, smoothing_width
from raincast.models.sprog import NUM_BANDS, SProg, sprog, statistics
from raincast.models.weights import BOX, box
from raincast.transforms import THRESHOLDS, UNKNOWN

DRY = math.log(10.0**-1.5)
"""Value of no rain on the scale of ln(mm/h): −15 dB, as in pysteps."""

DRY_RATE = 0.1
"""Rates below this value (mm/h) are dry."""

HIGHEST_INPUT = 300.0
"""Highest rate (mm/h) that the network reads; higher values are not rain."""

NEIGHBOURHOOD = (0.1, 1.0, 5.0)
"""Thresholds (mm/h) of the neighbourhood probabilities among the inputs."""

SPREAD_KM, SPREAD_POWER = 7.0, 0.75
"""Standard deviation of the neighbourhood: 7 km · (lead / 60 min)^0.75, fitted to errors of extrapolation."""

SMALLEST_SPREAD = 0.12
"""Lower bound of the spread of the logistic distribution of ln(mm/h): interpolation and noise at lead time 0."""

SMALLEST_SHARE = 1e-4
"""Lowest probability of rain that comes from outside the grid."""

FASTEST_KM_H = 150.0
"""Upper bound of the motion in km/h; nothing seen by weather radar moves faster."""

PIVOT = -1.0
"""Logit that `certainty` does not change: a probability of 27 %. The expected area stays about the same."""

SMALLEST_CHANCE = 1e-6
"""Lower bound of probabilities while they are advected; 1 less this is the upper."""

NEGLIGIBLE = 1e-4
"""Probabilities that are nowhere larger are not smoothed."""

MOST_FRAMES = 4
"""Number of past frames used: the newest ones."""

FEWEST_FRAMES = 3
"""Number of frames that S-PROG needs. If there are fewer, older ones count as missing."""


REACH = 64
"""Distance in pixels beyond which the layers with weights do not notice what was observed."""


class Tile(NamedTuple):
    """A part of a grid, and the weight of its forecast at each pixel (h, w): over all tiles they add up to 1.

    A tile without a weight stands alone.
    """

    y: slice
    x: slice
    weight: Tensor | None = None


class LagrangianForecaster(PhysicalNetwork):
    """Rain that moves with its flow and changes on the way, as a distribution at each pixel and lead time.

    The flow of the past frames is estimated (`optical_flow.find_flow`) and taken to be steady. Past frames are
    advected to the time of the newest one. Growth and decay remain to be forecast: `core` gives the distribution
    in these coordinates. Outside training, it is corrected by how long the rain has persisted so far
    (`persistence.observed_persistence`), and smoothed over scales that do not last (`persistence.smoothed`). Then
    the probabilities are advected forward once. The last channel is `UNKNOWN` at pixels whose rain comes from
    outside the grid or from where nothing was observed. The probability of rain from outside is the share of the
    advected frame that reaches the threshold. The distances of logits from `PIVOT` are multiplied by the
    `certainty` of each threshold, which no gradient changes: trained weights are too uncertain on other radars.

    Takes frames of rain in mm/h (`transform=rate`) and a mask of observed pixels, on any grid, and `scale`: the
    time step in minutes and the pixel size in km of each sample.
    """

    most_frames = MOST_FRAMES

    def __init__(
        self,
        in_channels: int = 2,
        out_channels: int = len(THRESHOLDS) + 1,
        *,
        stages: Sequence[Mapping[str, Any]],
        features: int = 16,
        hidden: int = 24,
        cell: CellFactory = ConvLSTM,
        weights: str | None = None,
    ) -> None:
        """Build the network; the arguments are those of `LagrangianCore`.

        `weights="box"` starts from the bundled weights. Raises ValueError for other channels than rain and the
        mask of observed pixels, and for a network that the bundled weights do not fit.
        """
        super().__init__()
        if in_channels != 2 or out_channels != len(THRESHOLDS) + 1:
            raise ValueError(
                "LagrangianForecaster reads rain and where it was observed, and gives "
                f"{len(THRESHOLDS) + 1} channels; found in_channels={in_channels}, out_channels={out_channels}. "
                "Take data/channels=[observed] alone, transform=rate and head=distribution."
            )
        self.in_channels = in_channels
        self.future_channels = 0
        self.core = LagrangianCore(stages=stages, features=features, hidden=hidden, cell=cell)
        self.stride = self.core.stride
        self.certainty: Tensor
        self.register_buffer("certainty", torch.ones(len(THRESHOLDS)))
        if weights is not None:
            self._begin_with(weights)

    def _begin_with(self, weights: str) -> None:
        if weights != BOX:
            raise ValueError(f"model.weights={weights}: choose {BOX}, or null to start without weights.")
        try:
            self.load_state_dict(box()[0])
        except RuntimeError as error:
            raise ValueError(
                "The bundled weights do not fit this network. Leave model.stages, model.features and "
                "model.hidden as they are, or start without them: model.weights=null."
            ) from error

    def forward(
        self,
        x: Float[Tensor, "b t 2 h w"],
        num_steps: int,
        scale: Float[Tensor, "b 2"],
        *,
        tiles: Sequence[Tile] = (),
    ) -> Float[Tensor, "b steps n h w"]:
        """Forecast logits at `THRESHOLDS` and the advected newest frame (mm/h) from rain (mm/h) and its mask.

        With `tiles` the layers with weights see one tile at a time, which saves memory; motion, S-PROG and all
        numbers are still those of the whole grid. Tiles are not for training.
        """
        check_frames(x, self.in_channels, num_steps)
        of = _followed(x, num_steps, scale)
        made: Tensor | None = None

        def room() -> Sequence[Tensor]:
            # the logits of the core lie where the output will be: that is most of the memory of a large grid
            nonlocal made
            made = of.past.new_empty(len(x), num_steps, len(THRESHOLDS) + 1, *x.shape[-2:])
            return made[:, :, :-1].unbind(1)

        of_itself = torch.is_grad_enabled() or torch.compiler.is_compiling()
        anchor = self.core.anchor(of.past, of.seen, of.scale, longest=num_steps)
        width = None if self.training else smoothing_width(anchor.correlation)
        leads: Sequence[Tensor] = self.core(
            of.past, of.seen, of.scale, anchor, room=None if of_itself else room, tiles=tiles
        )
        del anchor
        certainty = self.certainty[:, None, None]
        if made is None:
            leads = [torch.addcmul(PIVOT * (1.0 - certainty), own, certainty) for own in leads]
        else:
            for own in leads:
                own.mul_(certainty).add_(PIVOT * (1.0 - certainty))
        if not self.training:
            if made is None:
                leads = corrected(leads, of.past, of.seen, of.scale.pixel)
            else:
                # in place, in the blocks of the whole grid; where nothing was observed, nothing is corrected
                part = _bounds(of.seen[:, -1], stride=BLOCK)
                corrected([own[part] for own in leads], of.past[part], of.seen[part], of.scale.pixel)
        newest = torch.stack([of.past[:, -1], of.seen[:, -1]], dim=1)
        if torch.compiler.is_compiling():  # all at once: a tracer writes out each turn of a loop
            each = newest[:, None].expand(-1, num_steps, -1, -1, -1).flatten(0, 1)
            every = torch.stack(list(leads), dim=1).flatten(0, 1)
            moved = _advected(every, each, of.far.flatten(0, 1), None if width is None else width.flatten())
            return moved.reshape(*of.far.shape[:2], *moved.shape[1:])
        widths: Sequence[Tensor | None] = [None] * num_steps if width is None else width.unbind(1)
        steps = (
            _advected(own, newest, far, own_width)
            for own, far, own_width in zip(leads, of.far.unbind(1), widths, strict=True)
        )
        if made is None:
            return torch.stack(list(steps), dim=1)
        for lead, step in enumerate(steps):
            made[:, lead] = step
        return made

    def noise(
        self,
        x: Float[Tensor, "b t 2 h w"],
        num_steps: int,
        scale: Float[Tensor, "b 2"],
        *,
        num_members: int,
        seed: int,
    ) -> Iterator[Iterator[Float[Tensor, "m h w"]]]:
        """Yield each sample's noise, by lead time step, that ranks `num_members` members (`models.members`)."""
        of = _followed(x, num_steps, scale)
        newest = log_rate(of.past[:, -3:])
        bands = statistics(newest, of.seen[:, -3:].amin(1), step_minutes=of.scale.step, pixel_km=of.scale.pixel)
        for sample in range(len(x)):
            # no two seeds share a member
            seeds = range(seed * num_members, (seed + 1) * num_members)
            generators = [torch.Generator(x.device).manual_seed(own) for own in seeds]
            yield correlated_noise(newest[sample, -1], bands, sample, of.far[sample], generators)


class _Followed(NamedTuple):
    """Past frames (B, T, H, W) advected to the newest one, the mask of `seen` pixels, and how `far` rain moves.

    `far` holds the displacements until each lead time, (B, L, 2, H, W).
    """

    past: Tensor
    seen: Tensor
    far: Tensor
    scale: "Scale"


def _followed(x: Tensor, num_steps: int, scale: Tensor) -> _Followed:
    x = x[:, -MOST_FRAMES:].float()  # half precision cannot resolve fractions of a pixel
    if x.shape[1] < FEWEST_FRAMES:
        x = torch.cat([torch.zeros_like(x[:, :1])] * (FEWEST_FRAMES - x.shape[1]) + [x], dim=1)
    step, pixel = scale.float().unbind(1)
    rain, observed = x[:, :, 0].clamp(0.0, HIGHEST_INPUT), x[:, :, 1]
    rain = rain * observed
    T = rain.shape[1]
    flow = find_flow(log_rate(rain) - DRY, observed, pixel)
    fastest = FASTEST_KM_H / 60.0 * step / pixel
    speed = flow.square().sum(1, keepdim=True).sqrt().clamp_min(1e-6)
    flow = flow * (fastest[:, None, None, None] / speed).clamp_max(1.0)
    far = displacements(flow, max(num_steps, T - 1))
    back = far[:, : T - 1].flip(1)
    past, seen = _each(rain[:, :-1], back), _each(observed[:, :-1], back)
    # a pixel that is partly observed counts as not observed
    seen = (seen > 0.99).to(rain.dtype)
    past = torch.cat([past * seen, rain[:, -1:]], dim=1)
    seen = torch.cat([seen, observed[:, -1:]], dim=1)
    lead = step[:, None] * torch.arange(1, num_steps + 1, device=x.device, dtype=step.dtype)
    return _Followed(past, seen, far[:, :num_steps], Scale(step, pixel, lead))


class Scale(NamedTuple):
    """The physical scale of each sample: `step` in minutes (B,), `pixel` in km (B,), `lead` in minutes (B, L)."""

    step: Tensor
    pixel: Tensor
    lead: Tensor


class LagrangianCore(nn.Module):
    """The distribution at each pixel and lead time, from past frames advected to the time of the newest one.

    It is a logistic distribution of ln(rain rate). Its location μ is S-PROG's forecast; its spread s follows
    from the variance that S-PROG's bands have lost. A ConvLSTM encoder-forecaster over past frames and lead times
    and a convolution at full resolution correct both, and bend the distribution between thresholds τ:

        logit P(R ≥ τ_1) = (μ − ln τ_1) / s
        logit P(R ≥ τ_k) = logit P(R ≥ τ_{k−1}) − ln(τ_k / τ_{k−1}) / s · exp(g_k)

    so that probabilities never cross. All corrections are 0 at first: the untrained network is S-PROG. Pixel size,
    time step and lead time are inputs, so one set of weights serves any of them. No statistics of a data set
    enter.
    """

    def __init__(
        self,
        *,
        stages: Sequence[Mapping[str, Any]],
        features: int = 16,
        hidden: int = 24,
        cell: CellFactory = ConvLSTM,
    ) -> None:
        """Build the core; `stages` are those of the `PyramidEncoderForecaster` inside.

        It has `features` output channels; the convolution at full resolution has `hidden` channels.
        """
        super().__init__()
        self.recurrent = PyramidEncoderForecaster(4, features, future_channels=5, stages=stages, cell=cell)
        self.stride = self.recurrent.stride
        self.pixelwise = nn.Conv2d(features + 5 + len(NEIGHBOURHOOD), hidden, 3, padding=1)
        nn.init.kaiming_normal_(self.pixelwise.weight, a=SLOPE)
        factors = nn.Linear(32, 2 * hidden)
        self.condition = nn.Sequential(nn.Linear(NUM_BANDS + 7, 32), nn.SiLU(), factors)
        self.out = nn.Conv2d(hidden, len(THRESHOLDS) + 1, 1)
        for start in (self.pixelwise.bias, factors.weight, factors.bias, self.out.weight, self.out.bias):
            assert start is not None
            nn.init.zeros_(start)

    def anchor(
        self, rain: Float[Tensor, "b t h w"], observed: Float[Tensor, "b t h w"], scale: Scale, *, longest: int
    ) -> SProg:
        """Return S-PROG's forecast of ln(rain rate) for `forward`; `longest` is the largest lead time in steps."""
        return sprog(
            log_rate(rain[:, -3:]),
            observed[:, -3:].amin(1),
            scale.lead / scale.step[:, None],
            step_minutes=scale.step,
            pixel_km=scale.pixel,
            longest=longest,
        )

    def forward(
        self,
        rain: Float[Tensor, "b t h w"],
        observed: Float[Tensor, "b t h w"],
        scale: Scale,
        anchor: SProg,
        *,
        room: Callable[[], Sequence[Float[Tensor, "b k h w"]]] | None = None,
        tiles: Sequence[Tile] = (),
    ) -> Sequence[Float[Tensor, "b k h w"]]:
        """Return logits at `THRESHOLDS` of each lead time from at least three frames in mm/h without NaN.

        `observed` is 1 where they were observed, else 0. `anchor` is that of the same frames. Without
        gradients the result may be written into `room()`, which is called as late as possible. The layers with
        weights then go tile by tile, by default in one tile around all observed pixels. Farther than `REACH` from
        these it is dry.
        """
        B, L = scale.lead.shape
        rate = log_rate(rain)
        valid = observed[:, -3:].amin(1)
        spread = (3.0 * anchor.variance).sqrt() / math.pi
        spread = spread.clamp_min(SMALLEST_SPREAD)
        near = SPREAD_KM / scale.pixel[:, None] * (scale.lead / 60.0).pow(SPREAD_POWER)
        reached = torch.stack([(rain[:, -1] >= threshold).to(rain.dtype) for threshold in NEIGHBOURHOOD], dim=1)
        chance = smooth(reached, near)
        step, pixel, lead = (scale.step / 5.0).log(), scale.pixel.log(), (scale.lead / 30.0).log()
        wet = (rain[:, -1] >= DRY_RATE).to(rain.dtype).mean((-2, -1)).clamp(1e-3, 1.0).log()
        amount = (rain[:, -3:] * valid[:, None]).mean((-2, -1))
        growth = (amount[:, 2] + 0.02).log() - (amount[:, 0] + 0.02).log()
        each = torch.stack([step, pixel, wet / 3.0, growth], dim=1)[:, None].expand(-1, L, -1)
        numbers = torch.cat([torch.stack([lead, spread, scale.lead / 60.0], dim=2), each], dim=2)
        factors = self.condition(torch.cat([anchor.correlation, numbers], dim=2))
        whole = _Maps((rate - DRY) / 2.0, observed, anchor.field, chance)
        constants = _Numbers(step, pixel, lead, spread, factors)
        if room is None:
            return list(self._logits(whole, constants))
        dry = distribution(
            rate.new_full((B, L, 1, 1), DRY), spread, rate.new_zeros(B, L, len(THRESHOLDS) + 1, 1, 1)
        )
        made: Sequence[Tensor] = ()
        for tile in tiles or (Tile(*_bounds(observed[:, -1], REACH, self.stride)[1:]),):
            part = _Maps(*(maps[..., tile.y, tile.x] for maps in whole))
            leads = self._logits(part, constants) if _near(observed[:, -1], tile) else dry.unbind(1)
            for number, logits in enumerate(leads):
                if not made:
                    made = room()
                    for own, fill in zip(made, dry.unbind(1), strict=True):
                        own.copy_(fill if tile.weight is None else torch.zeros_like(fill))
                if tile.weight is None:
                    made[number][..., tile.y, tile.x] = logits
                else:
                    made[number][..., tile.y, tile.x] += logits * tile.weight
        return made

    def _logits(self, maps: "_Maps", of: "_Numbers") -> Iterator[Tensor]:
        """Yield the logits (B, K, h, w) of each lead time in a part of the grid: the layers with weights."""
        level, observed, field, chance = maps
        B, T, H, W = level.shape
        L = field.shape[1]

        def constant(values: Tensor, steps: int) -> Tensor:
            """(B,) or (B, steps) → (B, steps, 1, H, W)."""
            values = values[:, None].expand(B, steps) if values.ndim == 1 else values
            return values[:, :, None, None, None].expand(B, steps, 1, H, W)

        location = (field - DRY) / 2.0
        past = [level[:, :, None], observed[:, :, None], constant(of.step, T), constant(of.pixel, T)]
        known = (of.spread, of.lead, of.step, of.pixel)
        ahead = torch.cat([location[:, :, None], *(constant(number, L) for number in known)], dim=2)
        context = self.recurrent(torch.cat(past, dim=2), L, ahead)
        change = level[:, 1:] - level[:, :-1]
        now = torch.stack([level[:, -1], change[:, -1], change[:, -2], observed[:, -1]], dim=1)

        def logits(leads: slice) -> Tensor:
            """Return the logits of some lead times; a forecast takes one at a time to save memory."""
            known = (context[:, leads], location[:, leads, None], chance[:, leads])
            pixels = torch.cat([*known, now[:, None].expand(-1, known[0].shape[1], -1, -1, -1)], dim=2)
            factor, shift = of.factors[:, leads, :, None, None].chunk(2, dim=2)
            hidden = framewise(self.pixelwise, pixels) * (1.0 + factor) + shift
            correction = framewise(self.out, F.leaky_relu(hidden, SLOPE)).float()
            return distribution(field[:, leads], of.spread[:, leads], correction)

        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            yield from logits(slice(None)).unbind(1)
        else:
            for lead in range(L):
                yield logits(slice(lead, lead + 1))[:, 0]


def _bounds(
    observed: Float[Tensor, "b h w"], reach: int = 0, stride: int = 1
) -> tuple[EllipsisType, slice, slice]:
    """Return rows and columns of all pixels within `reach` of the observed ones; of one such pixel without any.

    They begin at multiples of `stride`, as the coarser levels of the whole grid do.
    """
    if observed.is_meta:  # memory is estimated for the worst case
        return ..., slice(None), slice(None)
    seen = (observed > 0).any(0)
    lines = [line.nonzero()[:, 0].tolist() or [0] for line in (seen.any(1), seen.any(0))]
    rows, columns = (slice(max(0, at[0] - reach) // stride * stride, at[-1] + reach + 1) for at in lines)
    return ..., rows, columns


def _near(observed: Float[Tensor, "b h w"], tile: Tile) -> bool:
    """Return True unless a tile of several lies farther than `REACH` from all observed pixels."""
    if tile.weight is None or observed.is_meta:
        return True
    y, x = (slice(max(0, part.start - REACH), part.stop + REACH) for part in (tile.y, tile.x))
    return bool(observed[:, y, x].any())


class _Maps(NamedTuple):
    """What the layers with weights see of a grid.

    `level` is ln(rain rate) of past frames, 0 where dry, and `observed` their mask (B, T, H, W); `field` is
    S-PROG's forecast (B, L, H, W), `chance` the neighbourhood probabilities (B, L, 3, H, W).
    """

    level: Tensor
    observed: Tensor
    field: Tensor
    chance: Tensor


class _Numbers(NamedTuple):
    """Numbers of the whole grid: `step`, `pixel` (B,), `lead`, `spread` (B, L); `factors` of hidden channels."""

    step: Tensor
    pixel: Tensor
    lead: Tensor
    spread: Tensor
    factors: Tensor


def motion(rain: Float[Tensor, "n t h w"], pixel_km: Float[Tensor, " n"]) -> Float[Tensor, "n 2 h w"]:
    """Return the motion in pixels per step of rain in mm/h, NaN where missing (`optical_flow.find_flow`)."""
    return find_flow(log_rate(rain.nan_to_num(0.0)) - DRY, rain.isfinite().float(), pixel_km)


def log_rate(rain: Tensor) -> Tensor:
    """Convert mm/h to ln(mm/h); `DRY` below `DRY_RATE`."""
    return torch.where(rain >= DRY_RATE, rain.clamp_min(DRY_RATE).log(), torch.full_like(rain, DRY))


def distribution(
    location: Float[Tensor, "b leads h w"],
    spread: Float[Tensor, "b leads"],
    correction: Float[Tensor, "b leads n h w"],
) -> Float[Tensor, "b leads k h w"]:
    """Return decreasing logits of P(R ≥ τ) at `THRESHOLDS`; without correction, of the logistic distribution."""
    thresholds = torch.tensor(THRESHOLDS, dtype=location.dtype, device=location.device).log()
    width = spread[:, :, None, None] * (1.5 * torch.tanh(correction[:, :, 1] / 1.5)).exp()
    first = (location + correction[:, :, 0] - thresholds[0]) / width
    bend = (2.0 * torch.tanh(correction[:, :, 2:] / 2.0)).exp()
    steps = (thresholds[1:] - thresholds[:-1])[:, None, None] / width[:, :, None] * bend
    return first[:, :, None] - torch.cat([torch.zeros_like(first)[:, :, None], steps.cumsum(2)], dim=2)


def _advected(logits: Tensor, newest: Tensor, far: Tensor, width: Tensor | None) -> Tensor:
    """Advect logits (B, K, H, W) and the newest frame and its mask (B, 2, H, W) by `far` (B, 2, H, W).

    Before, probabilities are smoothed with a standard deviation of `width` pixels (B,). Returns the output of the
    forecaster for one lead time, (B, K + 1, H, W).
    """
    # means of neighbouring probabilities: those of their logits would lose small cores
    chance = logits.sigmoid()
    if width is not None:
        chance = _smoothed(chance, newest[:, 1:], width)
    fields = move(torch.cat([chance, newest], dim=1), far, border=True)
    chance, rain, seen = fields[:, :-2], fields[:, -2:-1], fields[:, -1:]
    reached = inside(far)
    known = (seen > 0.5).to(reached.dtype) * reached
    rain = torch.where(known > 0, rain, torch.full_like(rain, UNKNOWN))
    # a sum of products is faster than torch.where, whose mask would be repeated for each threshold
    moved = torch.addcmul((1.0 - reached) * _shares(rain, known), chance.logit(SMALLEST_CHANCE), reached)
    return torch.cat([moved, rain], dim=1)


def _smoothed(chance: Tensor, seen: Tensor, width: Tensor) -> Tensor:
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return smoothed(chance, seen, width)
    part = _bounds(seen[:, 0], stride=POOL)
    known = chance[part]
    # heavy rain that is nowhere likely needs no smoothing
    num = len(THRESHOLDS) if chance.is_meta else int((known.amax((0, 2, 3)) >= NEGLIGIBLE).sum())
    if num:
        smoothed(known[:, :num], seen[part], width)
    return chance


def _shares(newest: Tensor, known: Tensor) -> Tensor:
    """Return the logit (N, K, 1, 1) of the share of known pixels that reach each threshold.

    `newest` is `UNKNOWN`, below all thresholds, at the others.
    """
    thresholds = torch.tensor(THRESHOLDS, dtype=newest.dtype, device=newest.device)[:, None, None]
    reached = (newest >= thresholds).to(newest.dtype).sum((-2, -1))
    shares = reached / known.sum((-2, -1)).clamp_min(1.0)
    return shares.clamp(SMALLEST_SHARE, 0.5).logit()[..., None, None]


def _each(frames: Tensor, far: Tensor) -> Tensor:
    """Advect frames (B, T, H, W), each by its own displacement (B, T, 2, H, W); 0 outside the grid."""
    return move(frames.flatten(0, 1)[:, None], far.flatten(0, 1)).view(frames.shape)
