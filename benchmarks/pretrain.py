"""Train the bundled weights: many radar networks, any step, pixel size and lead time, in Lagrangian coordinates.

    python benchmarks/pretrain.py knmi=data/knmi mch=data/mch2015,data/mch2017 fmi=data/fmi --out weights.npz

Each NAME=ARCHIVES is one radar network; all networks have the same weight. Frames are taken at every step and at
multiples of it up to 15 minutes, at their own pixel size and at twice that size. Samples are crops that move with
the rain: motion is estimated on the whole image, past frames are advected to the newest one, and later frames are
moved back to it. Crops are drawn by the rain of the newest input frame, never by later rain, which would teach
growth that does not exist. `--minutes` counts CPU time, so that a busy machine trains as long. A run that was
stopped resumes from `OUT.last`.
"""

import argparse
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import yaml
from box import for_other_radars
from torch import Tensor
from unet import with_unet

from raincast.archive import Archive
from raincast.losses import DistributionLoss
from raincast.models.lagrangian import LagrangianCore, Scale, motion
from raincast.models.weights import write_weights
from raincast.transforms import RateScaling

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent
SPARSE = 8
"""Motion is stored at every n-th pixel, since it varies slowly."""
REGION, MOST_REGIONS = 512, 24
"""Side in pixels of the regions into which large images are cut, and how many of the wettest are kept."""
CROP, LEADS, PAST = 128, 6, 4
LONGEST_STEP = 15.0
LEAD_RANGE = (30.0, 90.0)
"""Range of the last lead time of a sample in minutes."""
BLOCK = 32
"""Side in pixels of the blocks whose rain determines where crops are drawn."""
NOT_OF_WEIGHTS = ("defaults", "weights")
"""Keys of conf/ that say where a network's weights are from, or belong to Hydra."""
Maps = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Region:
    """Frames (T, H, W) in mm/h as float16, NaN for missing, and motion for each multiple of the step."""

    rain: npt.NDArray[np.float16]
    step: float
    pixel: float
    motion: dict[int, npt.NDArray[np.float16]]
    amount: Maps
    cover: Maps

    @classmethod
    def of(cls, rain: Maps, step: float, pixel: float) -> "Region":
        """Build a region and estimate the motion of all frames."""
        multiples = [m for m in (1, 2, 3, 4) if m * step <= LONGEST_STEP and len(rain) > 3 * m]
        h, w = (n // BLOCK for n in rain.shape[1:])
        blocks = rain[:, : h * BLOCK, : w * BLOCK].reshape(len(rain), h, BLOCK, w, BLOCK)
        observed = np.isfinite(blocks)
        amount = np.where(observed, 1.0 - np.exp(-np.nan_to_num(blocks)), 0.0).mean((2, 4))
        motion = {m: _motion(rain, m, pixel) for m in multiples}
        return cls(rain.astype(np.float16), step, pixel, motion, amount, observed.mean((2, 4)))

    def velocity(self, multiple: int, frame: int, y: Maps, x: Maps) -> Maps:
        """Return the velocity (2, …) in pixels per step of `multiple`, y first, at pixels (y, x)."""
        at = (SPARSE - 1) / 2.0
        return _bilinear(self.motion[multiple][frame], (y - at) / SPARSE, (x - at) / SPARSE)


@torch.inference_mode()
def _motion(rain: Maps, multiple: int, pixel: float) -> npt.NDArray[np.float16]:
    T, H, W = rain.shape
    h, w = -(-H // SPARSE), -(-W // SPARSE)
    found = np.full((T, 2, h, w), np.nan, np.float16)
    for last in range(2 * multiple, T):
        frames = torch.from_numpy(rain[[last - 2 * multiple, last - multiple, last]])[None]
        flow = motion(frames, torch.tensor([pixel], dtype=torch.float32))[0].numpy()
        padded = np.pad(flow, ((0, 0), (0, h * SPARSE - H), (0, w * SPARSE - W)), mode="edge")
        found[last] = padded.reshape(2, h, SPARSE, w, SPARSE).mean((2, 4))
    return found


def regions_of(path: Path) -> list[Region]:
    """Return an archive's regions: the observed part of its grid, or the wettest squares of a large one."""
    archive = Archive.open(path)
    rain = archive.read(0, archive.num_times).reshape(archive.num_times, *archive.grid.shape)
    step, pixel = archive.step_minutes, archive.grid.pixel_km
    ever = np.isfinite(rain).any(0)
    rows, columns = np.flatnonzero(ever.any(1)), np.flatnonzero(ever.any(0))
    rain = rain[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    parts = [rain] if max(rain.shape[1:]) < 3 * REGION else list(_wettest(rain))
    made = []
    for part in parts:
        for factor in (1, 2):
            coarse = part if factor == 1 else _coarsen(part)
            if min(coarse.shape[1:]) >= CROP:
                made.append(Region.of(np.minimum(coarse, 300.0, dtype=np.float32), step, pixel * factor))
    return made


def _wettest(rain: Maps) -> Iterator[Maps]:
    """Yield squares that do not overlap, the wettest first, by the rain of one early frame."""
    frame = rain[len(rain) // 3]
    found = []
    for y in range(0, frame.shape[0] - REGION + 1, REGION // 2):
        for x in range(0, frame.shape[1] - REGION + 1, REGION // 2):
            part = frame[y : y + REGION, x : x + REGION]
            observed = np.isfinite(part).mean()
            if observed >= 0.6:
                found.append((float(np.nanmean(1.0 - np.exp(-part)) * observed), y, x))
    kept: list[tuple[int, int]] = []
    for amount, y, x in sorted(found, reverse=True):
        apart = all(abs(y - b) >= REGION or abs(x - c) >= REGION for b, c in kept)
        if amount >= 0.01 and apart and len(kept) < MOST_REGIONS:
            kept.append((y, x))
            yield rain[:, y : y + REGION, x : x + REGION]


def _coarsen(rain: Maps) -> Maps:
    T, h, w = len(rain), rain.shape[1] // 2, rain.shape[2] // 2
    blocks = rain[:, : 2 * h, : 2 * w].reshape(T, h, 2, w, 2)
    count = np.isfinite(blocks).sum((2, 4))
    means = np.nansum(blocks, axis=(2, 4)) / np.maximum(count, 1)
    return np.where(count >= 2, means, np.nan).astype(np.float32)


class Sampler:
    """Samples of all networks: equal shares of networks, regions and steps; places by the newest frame's rain."""

    def __init__(self, networks: dict[str, list[Region]], seed: int) -> None:
        self.networks = list(networks.values())
        self.rng = np.random.default_rng(seed)

    def batch(self, size: int) -> list[Tensor]:
        """Return past rain, its observed mask, later rain, step, pixel size and lead times."""
        rows = []
        while len(rows) < size:
            row = self._draw()
            if row is not None:
                rows.append(row)
        return [torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)]

    def _draw(self) -> tuple[np.ndarray, ...] | None:
        rng = self.rng
        regions = self.networks[rng.integers(len(self.networks))]
        region = regions[rng.integers(len(regions))]
        multiple = int(rng.choice(list(region.motion)))
        step = multiple * region.step
        hop = max(1, round(rng.uniform(*LEAD_RANGE) / LEADS / step))
        first, last = (PAST - 1) * multiple, len(region.rain) - 1 - 3 * hop * multiple
        if last < first:
            return None
        frame = int(rng.integers(first, last + 1))
        corner = self._corner(region, frame)
        if corner is None or np.isnan(region.motion[multiple][frame]).any():
            return None
        rain, later = _moving(region, frame, multiple, hop, corner)
        rain, later = self._augmented(rain, later)
        leads = step * hop * np.arange(1, LEADS + 1, dtype=np.float32)
        observed = np.isfinite(rain).astype(np.float32)
        return np.nan_to_num(rain), observed, later, np.float32(step), np.float32(region.pixel), leads

    def _corner(self, region: Region, frame: int) -> tuple[int, int] | None:
        side = CROP // BLOCK
        wet, seen = (_box_means(table[frame], side) for table in (region.amount, region.cover))
        weight = np.minimum(1.0, 0.01 + wet) * (seen >= 0.5)
        if not weight.sum() > 0:
            return None
        place = int(self.rng.choice(weight.size, p=(weight / weight.sum()).ravel()))
        jitter = self.rng.integers(-(BLOCK // 2), BLOCK // 2 + 1, 2)
        corner = np.array(divmod(place, weight.shape[1])) * BLOCK + jitter
        y, x = np.clip(corner, 0, np.array(region.rain.shape[1:]) - CROP)
        return int(y), int(x)

    def _augmented(self, rain: Maps, later: Maps) -> tuple[Maps, Maps]:
        """Rotate, mirror, and usually change the rates: ±3 dBZ, and a power of 0.85 to 1.2."""
        turn, rng = int(self.rng.integers(8)), self.rng
        power = gain = 1.0
        if rng.random() < 0.7:
            power, gain = math.exp(rng.uniform(math.log(0.85), math.log(1.2))), 10 ** (rng.uniform(-3, 3) / 16)
        made = []
        for frames in (rain, later):
            turned = np.rot90(frames, turn % 4, (1, 2))
            turned = turned[..., ::-1] if turn >= 4 else turned
            made.append(np.minimum(gain * turned**power, 300.0).astype(np.float32))
        return made[0], made[1]


def _moving(region: Region, frame: int, multiple: int, hop: int, corner: tuple[int, int]) -> tuple[Maps, Maps]:
    """Return past frames advected to `frame`, and later ones moved back to it: (PAST, h, w) and (LEADS, h, w)."""
    H, W = region.rain.shape[1:]
    y, x = np.mgrid[corner[0] : corner[0] + CROP, corner[1] : corner[1] + CROP].astype(np.float32)

    def follow(y: Maps, x: Maps, steps: float) -> tuple[Maps, Maps]:
        half = steps / 2.0 * region.velocity(multiple, frame, y, x)
        vy, vx = steps * region.velocity(multiple, frame, y + half[0], x + half[1])
        return y + vy, x + vx

    past = [region.rain[frame][y.astype(int), x.astype(int)].astype(np.float32)]
    py, px = y, x
    for back in range(1, PAST):
        py, px = follow(py, px, -1.0)
        inside = (py >= 0) & (px >= 0) & (py <= H - 1) & (px <= W - 1)
        past.append(np.where(inside, _bilinear(region.rain[frame - back * multiple], py, px), np.nan))
    later = []
    py, px = y, x
    for number in range(1, LEADS + 1):
        py, px = follow(py, px, float(hop))
        when = frame + number * hop * multiple
        # the nearest pixel: averaging several would narrow the distribution
        later.append(_nearest(region.rain[when], py, px) if when < len(region.rain) else np.full_like(y, np.nan))
    return np.stack(past[::-1]), np.stack(later)


def _bilinear(values: np.ndarray, y: Maps, x: Maps) -> Maps:
    H, W = values.shape[-2:]
    y, x = np.clip(y, 0, H - 1), np.clip(x, 0, W - 1)
    top, left = np.minimum(y.astype(np.int32), max(H - 2, 0)), np.minimum(x.astype(np.int32), max(W - 2, 0))
    low, right = np.minimum(top + 1, H - 1), np.minimum(left + 1, W - 1)
    fy, fx = y - top, x - left

    def at(rows: np.ndarray, columns: np.ndarray) -> Maps:
        return values[..., rows, columns].astype(np.float32)

    upper = at(top, left) * (1 - fx) + at(top, right) * fx
    return upper * (1 - fy) + (at(low, left) * (1 - fx) + at(low, right) * fx) * fy


def _nearest(values: np.ndarray, y: Maps, x: Maps) -> Maps:
    H, W = values.shape
    rows, columns = np.rint(y).astype(np.int32), np.rint(x).astype(np.int32)
    inside = (rows >= 0) & (rows < H) & (columns >= 0) & (columns < W)
    found = values[np.clip(rows, 0, H - 1), np.clip(columns, 0, W - 1)].astype(np.float32)
    return np.where(inside, found, np.float32(np.nan))


def _box_means(values: Maps, side: int) -> Maps:
    sums = np.pad(values.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    return (sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]) / side**2


def train(
    sampler: Sampler, out: Path, *, minutes: float, batch: int, lr: float, seed: int, unet: bool = False
) -> dict[str, Tensor]:
    """Return the averaged weights after `minutes` of CPU time."""
    torch.manual_seed(seed)
    model = yaml.safe_load((ROOT / "conf" / "model" / "lagrangian.yaml").read_text())
    made = [
        LagrangianCore(stages=model["stages"], features=model["features"], hidden=model["hidden"]) for _ in "ab"
    ]
    core, averaged = [with_unet(core) for core in made] if unet else made
    averaged.load_state_dict(core.state_dict())
    loss_of = DistributionLoss(RateScaling())
    optimizer = torch.optim.AdamW(core.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=1e-2)
    last, step, before = Path(f"{out}.last"), 0, 0.0
    if last.exists():
        kept = torch.load(last, weights_only=True)
        core.load_state_dict(kept["core"])
        averaged.load_state_dict(kept["averaged"])
        optimizer.load_state_dict(kept["optimizer"])
        step, before = kept["step"], kept["seconds"]
        sampler.rng = np.random.default_rng((seed, step))
    begin, losses = time.process_time(), []
    while (used := before + time.process_time() - begin) < 60 * minutes:
        share = used / (60 * minutes)
        rate = lr * min(1.0, (step + 1) / 200) * (0.49 * (1 + math.cos(math.pi * share)) + 0.02)
        for group in optimizer.param_groups:
            group["lr"] = rate
        rain, observed, later, minute, pixel, leads = sampler.batch(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            longest = round(float((leads[:, -1] / minute).max()))
            scale = Scale(minute, pixel, leads)
            anchor = core.anchor(rain, observed, scale, longest=longest)
            logits = torch.stack(core(rain, observed, scale, anchor), dim=1)
        known = torch.zeros_like(logits[:, :, :1]).float()
        loss = loss_of(torch.cat([logits.float(), known], 2), later[:, :, None], later.isfinite()[:, :, None])
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(core.parameters(), 1.0)
        if bool(norm.isfinite()):
            optimizer.step()
        step += 1
        with torch.no_grad():
            for mean, value in zip(averaged.parameters(), core.parameters(), strict=True):
                mean.lerp_(value, 1.0 - min(0.998, step / (10 + step)))
        losses.append(loss.item())
        if step % 100 == 0:
            log.info("step %d, %.0f s, loss %.4f, rate %.1e", step, used, np.mean(losses[-100:]), rate)
        if step % 500 == 0:
            states = {"core": core.state_dict(), "averaged": averaged.state_dict()}
            rest = {"optimizer": optimizer.state_dict(), "step": step, "seconds": used}
            torch.save(states | rest, last)
    return averaged.state_dict()


def config_of_box() -> dict[str, Any]:
    """Return the config that a file of weights carries, as a checkpoint does."""

    def conf(name: str) -> dict[str, Any]:
        settings = yaml.safe_load((ROOT / "conf" / f"{name}.yaml").read_text())
        return {key: value for key, value in settings.items() if key not in NOT_OF_WEIGHTS}

    return {
        "data": {"channels": {"observed": {"_target_": "raincast.data.channels.Observed"}}, "max_missing": 1},
        "head": conf("head/distribution"),
        "metrics": {"thresholds": [0.1, 0.5, 1, 2, 5, 10]},
        "model": conf("model/lagrangian"),
        "transform": conf("transform/rate"),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the archives, train, write the weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="+", metavar="NAME=ARCHIVE[,ARCHIVE…]")
    parser.add_argument("--exclude", nargs="*", default=[], help="networks that are left out")
    parser.add_argument("--out", type=Path, required=True, help="weights.npz")
    parser.add_argument("--minutes", type=float, default=40.0, help="of processor time")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lr", type=float, default=2.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--unet", action="store_true", help="in the place of the ConvLSTMs (benchmarks/unet.py)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    named = dict(entry.split("=", 1) for entry in options.networks)
    networks = {
        name: [region for path in paths.split(",") for region in regions_of(Path(path))]
        for name, paths in named.items()
        if name not in options.exclude
    }
    state = train(
        Sampler(networks, options.seed + 100),
        options.out,
        minutes=options.minutes,
        batch=options.batch,
        lr=options.lr,
        seed=options.seed,
        unet=options.unet,
    )
    info = {"networks": list(networks), "minutes": options.minutes, "config": config_of_box()}
    write_weights(options.out, for_other_radars(state), info)


if __name__ == "__main__":
    main()
