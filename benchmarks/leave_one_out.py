"""Leave one radar network out: weights trained on the others, scored on it together with pysteps' methods.

    python benchmarks/leave_one_out.py knmi=data/knmi mch=data/mch2015,data/mch2017 … --weights folds

For each NAME=ARCHIVES the weights `folds/without_NAME.npz` are used, or trained first (`benchmarks/pretrain.py`,
`--minutes` each). `--only` scores only some networks; `--box` uses the bundled weights for all of them. `--out`
keeps the rows of a run; `--read` reports those of several, each network and all together.

From each archive evenly spaced start times are taken, and at each the `--places` wettest windows of `--size`
pixels of the newest frame, without overlap. All forecasters read the same four frames and are scored on the same
pixels: observed at the valid time, and reached by Lucas-Kanade's motion from inside the window. CSI is computed
per window and then averaged; the network's rates are decided by `csi` and by `area` (bias 1). CRPS is in mm/h, the
integral over rates from the same thresholds for all. Intervals are 95 % intervals of paired differences, from
resampling windows.
"""

import argparse
import contextlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pretrain
import torch
import yaml
from box import as_trained
from rich.console import Console
from rich.table import Table
from unet import with_unet

from raincast.archive import Archive
from raincast.baselines import Anvil, Extrapolation, Linda, SProg, Steps
from raincast.baselines.motion import find_motion
from raincast.evaluation.report.probability_figures import reliability_diagram
from raincast.evaluation.report.score_figures import look
from raincast.forecaster import Query
from raincast.models.distribution import DistributionHead
from raincast.models.lagrangian import LagrangianForecaster
from raincast.models.weights import box, read_weights
from raincast.transforms import RateScaling

LEADS = (5, 15, 30, 45, 60)
MINUTES = {1.0: (15, 30, 45, 60), 5.0: (15, 30, 45, 60)}
THRESHOLDS = (1.0, 5.0, 10.0)
RATES = tuple(float(rate) for rate in np.geomspace(0.1, 60.0, 28))
"""Rates in mm/h over which the CRPS is summed."""
RELIABILITY_AT = 1.0
"""Threshold in mm/h of the reliability."""
BINS = tuple(f"{low:.1f}" for low in np.arange(0, 1, 0.1))
"""Lower bounds of the bins of probabilities."""
FEWEST = 200
"""Fewest pixels in a bin of probabilities whose frequency is shown."""
WIDTHS = np.diff([0.0, *np.sqrt(np.array(RATES[1:]) * RATES[:-1]), 70.0])
PAST = 4
Maps = npt.NDArray[np.float32]


class Network:
    """The network with given weights: probabilities at `RATES` and rates by two decisions."""

    def __init__(self, state: Mapping[str, torch.Tensor], *, unet: bool = False) -> None:
        model = yaml.safe_load((pretrain.ROOT / "conf" / "model" / "lagrangian.yaml").read_text())
        settings = {key: model[key] for key in ("stages", "features", "hidden")}
        self.network = LagrangianForecaster(**settings).eval()
        if unet:
            with_unet(self.network.core)
        self.network.load_state_dict(dict(state))

    @torch.inference_mode()
    def __call__(self, past: Maps, steps: int, step: float, pixel: float) -> dict[str, Maps]:
        """Forecast (T, H, W) in mm/h → rates (steps, H, W) by `csi` and `area`, exceedance (steps, K, H, W).

        The exceedance is that of `RATES`, and of `RELIABILITY_AT` alone under "reliability", (steps, H, W).
        """
        rain = torch.from_numpy(past)[None]
        x = torch.stack([rain.nan_to_num(0.0), rain.isfinite().float()], dim=2)
        output = self.network(x, steps, torch.tensor([[step, pixel]]))
        made: dict[str, Maps] = {}
        for decision in ("csi", "area"):
            head = DistributionHead(rates_by=decision)
            made[decision] = head.rates(output, RateScaling())[0, :, 0].numpy()
        head = DistributionHead()
        made["exceedance"] = head.exceedance(output, RATES, RateScaling())[0].numpy()
        made["reliability"] = head.exceedance(output, [RELIABILITY_AT], RateScaling())[0, :, 0].numpy()
        return made


def windows(path: Path, starts: int, size: int, places: int = 1) -> Iterator[dict[str, Any]]:
    """Yield past and later frames of the wettest windows at each start time, which do not overlap."""
    archive = Archive.open(path)
    step, pixel = archive.step_minutes, archive.grid.pixel_km
    multiple = max(1, round(5 / step))
    steps = int(60 // (step * multiple))
    last = archive.num_times - 1 - (PAST - 1) * multiple
    steps = min(steps, max(1, (last - 2) // multiple))
    firsts = np.arange(0, last - steps * multiple + 1)
    for first in np.unique(firsts[np.linspace(0, firsts.size - 1, starts).round().astype(int)]):
        frames = archive.read(int(first), (PAST + steps - 1) * multiple + 1)
        frames = frames.reshape(len(frames), *archive.grid.shape)[::multiple]
        for place, (y, x) in enumerate(_wettest(frames[PAST - 1], size, places)):
            window = np.ascontiguousarray(frames[:, y, x])
            if (np.nan_to_num(window[PAST - 1]) >= 0.1).mean() < 0.01:
                continue
            yield {
                "past": window[:PAST], "later": window[PAST:], "step": step * multiple, "pixel": pixel,
                "start": f"{path.name}:{first}" + (f":{place}" if place else ""),
            }  # fmt: skip


def _wettest(frame: Maps, size: int, places: int) -> list[tuple[slice, slice]]:
    H, W = frame.shape
    amount, seen = 1.0 - np.exp(-np.nan_to_num(frame)), np.isfinite(frame)
    height, width = min(size, H), min(size, W)
    found = []
    for y in range(0, H - height + 1, max(1, height // 4)):
        for x in range(0, W - width + 1, max(1, width // 4)):
            part = slice(y, y + height), slice(x, x + width)
            found.append((float(amount[part].mean() * seen[part].mean() ** 2), y, x))
    kept: list[tuple[int, int]] = []
    for _, y, x in sorted(found, key=lambda window: -window[0]):
        if len(kept) < places and all(abs(y - v) >= height or abs(x - u) >= width for v, u in kept):
            kept.append((y, x))
    return [(slice(y, y + height), slice(x, x + width)) for y, x in kept]


def score(window: dict[str, Any], network: Network, *, ensembles: Sequence[Any]) -> list[dict[str, Any]]:
    """Return a row for each forecaster, lead time and threshold."""
    past, later, step, pixel = (window[name] for name in ("past", "later", "step", "pixel"))
    motion = find_motion(past[-3:], "lucas_kanade")
    if motion is None:
        return []
    query = Query.for_steps(past[None, :, None], len(later), step_minutes=step, pixel_km=pixel, members=True)
    with contextlib.redirect_stdout(io.StringIO()):
        made = {one.name: one.predict(query) for one in (Extrapolation(), SProg(), Anvil(), *ensembles)}
    ours = network(past, len(later), step, pixel)
    rows = []
    for number, observed in enumerate(later):
        minutes = (number + 1) * step
        lead = min(LEADS, key=lambda known: abs(known - minutes))
        if abs(lead - minutes) > step / 2 - 1e-6:
            continue
        counted = np.isfinite(observed) & inside_window(past[-1], motion, number + 1)
        if counted.sum() < 500:
            continue
        truth = observed[counted]
        rates = {name: prediction.rates[0, number, 0][counted] for name, prediction in made.items()}
        rates |= {decision: ours[decision][number][counted] for decision in ("csi", "area")}
        exceed = {name: _shares(prediction, number, counted) for name, prediction in made.items()}
        exceed["csi"] = ours["exceedance"][number][:, counted]
        where = {"start": window["start"], "lead": lead}
        reached = truth[None] >= np.array(RATES, np.float32)[:, None]
        for name, chance in exceed.items():
            crps = float(np.square(chance - reached).mean(1) @ WIDTHS)
            rows.append({**where, "who": name, "score": "crps", "value": crps})
        for threshold in THRESHOLDS:
            wet = truth >= threshold
            if wet.sum() < 10:
                continue
            for name, rate in rates.items():
                said = rate >= threshold * (1 - 1e-6)
                csi = float((said & wet).sum() / max(1, (said | wet).sum()))
                rows.append({**where, "who": name, "score": f"csi{threshold:g}", "value": csi})
                rows.append(
                    {**where, "who": name, "score": f"bias{threshold:g}", "value": float(said.sum() / wet.sum())}
                )
        chance = ours["reliability"][number][counted]
        for low in map(float, BINS):
            inside = (chance >= low) & (chance < low + 0.1 + 1e-9)
            row = {**where, "who": "csi", "score": f"reliability{low:.1f}", "value": float(inside.sum())}
            rows.append(
                {
                    **row,
                    "stated": float(chance[inside].sum()),
                    "wet": float((truth[inside] >= RELIABILITY_AT).sum()),
                }
            )
    return rows


def _shares(prediction: Any, number: int, counted: npt.NDArray[np.bool_]) -> npt.NDArray[np.floating[Any]]:
    """Return P(rate ≥ each of `RATES`) from members, or 0 and 1 without members."""
    maps = prediction.rates if prediction.members is None else prediction.members
    values = maps[0, number][:, counted]
    return np.stack([(values >= rate).mean(0) for rate in RATES])


def inside_window(newest: Maps, motion: npt.NDArray[np.float64], steps: int) -> npt.NDArray[np.bool_]:
    """Return a mask of pixels whose rain comes from an observed pixel inside the window."""
    from pysteps.extrapolation.semilagrangian import extrapolate

    with contextlib.redirect_stdout(io.StringIO()):
        moved = extrapolate(np.isfinite(newest).astype(float), motion, steps, outval=0.0)
    return moved[-1] > 0.99


def difference(rows: list[dict[str, Any]], score: str, leads: Sequence[int], ours: str, theirs: str) -> str:
    """Return the mean paired difference with its interval, by start times.

    For the CRPS relative to the rival's.
    """
    by_start: dict[str, list[tuple[float, float]]] = {}
    table = {(r["start"], r["lead"], r["who"]): r["value"] for r in rows if r["score"] == score}
    for start, lead, who in table:
        if who == ours and lead in leads and (start, lead, theirs) in table:
            by_start.setdefault(start, []).append((table[start, lead, ours], table[start, lead, theirs]))
    if len(by_start) < 4:
        return f"– ({len(by_start)} starts)"
    pairs = np.array([np.mean(values, axis=0) for values in by_start.values()])
    resampled = pairs[np.random.default_rng(0).integers(len(pairs), size=(2000, len(pairs)))].mean(1)
    if score == "crps":
        value, spread = pairs[:, 0].mean() / pairs[:, 1].mean() - 1, resampled[..., 0] / resampled[..., 1] - 1
        return f"{value:+.0%} [{np.quantile(spread, 0.025):+.0%}, {np.quantile(spread, 0.975):+.0%}]"
    value, spread = (pairs[:, 0] - pairs[:, 1]).mean(), resampled[..., 0] - resampled[..., 1]
    return f"{value:+.3f} [{np.quantile(spread, 0.025):+.3f}, {np.quantile(spread, 0.975):+.3f}]"


def report(console: Console, name: str, rows: list[dict[str, Any]]) -> None:
    """Print scores by lead time, and differences from each rival."""
    rivals = [who for who in dict.fromkeys(row["who"] for row in rows) if who not in ("csi", "area")]
    means = Table(title=f"{name}: {len({row['start'] for row in rows})} start times", title_justify="left")
    for column in ("score", "forecaster", *(f"{lead} min" for lead in LEADS)):
        means.add_column(column)
    for score_name in ("csi1", "csi5", "csi10", "bias1", "bias5", "crps"):
        for who in ("csi", "area", *rivals):
            values = [
                [r["value"] for r in rows if (r["score"], r["who"], r["lead"]) == (score_name, who, lead)]
                for lead in LEADS
            ]
            if any(values):
                means.add_row(score_name, who, *(f"{np.mean(v):.3f}" if v else "–" for v in values))
    console.print(means)
    paired = Table(title=f"{name}: the network minus each rival", title_justify="left")
    for column in ("rival", "score", "rates by csi", "rates by area", *(f"{lead} min" for lead in (15, 30, 60))):
        paired.add_column(column)
    for rival in rivals:
        for score_name in ("csi1", "csi5", "crps"):
            middle = [lead for lead in LEADS if lead >= 15]
            by_area = difference(rows, score_name, middle, "area", rival) if score_name != "crps" else ""
            paired.add_row(
                rival, score_name, difference(rows, score_name, middle, "csi", rival), by_area,
                *(difference(rows, score_name, [lead], "csi", rival) for lead in (15, 30, 60)),
            )  # fmt: skip
    console.print(paired)
    reliability = Table(title=f"{name}: P(≥ 1 mm/h), forecast → observed", title_justify="left")
    reliability.add_column("lead")
    for low in BINS:
        reliability.add_column(low)
    for lead in LEADS:
        shown = np.round(reliability_of(rows, lead)[:2], 2).T
        reliability.add_row(
            f"{lead} min", *("–" if np.isnan(wet) else f"{stated:.2f} → {wet:.2f}" for stated, wet in shown)
        )
    console.print(reliability)


def reliability_of(rows: list[dict[str, Any]], lead: int) -> tuple[npt.NDArray[np.float64], ...]:
    """Return mean probability, frequency and number of pixels in each of `BINS`.

    The first two are NaN for fewer than `FEWEST` pixels.
    """
    sums = [
        [sum(row[key] for row in rows if (row["score"], row["lead"]) == (f"reliability{low}", lead))
         for low in BINS]
        for key in ("stated", "wet", "value")
    ]  # fmt: skip
    stated, wet, count = np.array(sums, np.float64)
    enough = np.where(count >= FEWEST, count, np.nan)
    return stated / enough, wet / enough, count


def draw_reliability(path: Path, rows: list[dict[str, Any]], leads: Sequence[int] = (5, 15, 30, 60)) -> None:
    """Draw the reliability of P(≥ 1 mm/h) for each network and all together, one curve for each lead time."""
    names = list(dict.fromkeys(row["network"] for row in rows))
    panels = {name: [row for row in rows if row["network"] == name] for name in names} | {"together": rows}
    drawn: dict[str, Any] = {}
    for title, own in panels.items():
        for lead in leads:
            curve = reliability_of(own, lead)
            if curve[2].any():
                drawn.setdefault(title, {})[f"{lead} min"] = curve
    looks = {f"{lead} min": look(number) for number, lead in enumerate(leads)}
    reliability_diagram(drawn, looks=looks).savefig(path, dpi=80)


def main() -> None:
    """Train missing weights, score each network, print all tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", metavar="NAME=ARCHIVE[,ARCHIVE…]")
    parser.add_argument("--weights", type=Path, default=Path("folds"))
    parser.add_argument("--minutes", type=float, default=12.0, help="of training each fold")
    parser.add_argument("--only", nargs="*", help="networks that are scored")
    parser.add_argument("--box", action="store_true", help="score the bundled weights")
    parser.add_argument("--plain", action="store_true", help="the weights as they were trained")
    parser.add_argument("--starts", type=int, default=10, help="of each archive")
    parser.add_argument("--places", type=int, default=1, help="windows of each start time")
    parser.add_argument("--ensembles", type=int, default=5, help="windows of each archive with STEPS")
    parser.add_argument("--linda", action="store_true")
    parser.add_argument("--unet", action="store_true", help="the weights are those of benchmarks/unet.py")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--out", type=Path, help="rows as JSON")
    parser.add_argument("--read", type=Path, nargs="*", default=[], help="rows of earlier runs")
    parser.add_argument("--reliability", type=Path, help="a picture of the reliability at 1 mm/h")
    options = parser.parse_args()
    if not (options.networks or options.read):
        parser.error("name networks to score, or rows to --read")
    torch.set_num_threads(1)
    console = Console(width=180)
    everything: list[dict[str, Any]] = [row for path in options.read for row in json.loads(path.read_text())]
    for name in dict.fromkeys(row["network"] for row in everything):
        report(console, name, [row for row in everything if row["network"] == name])
    named = {name: paths.split(",") for name, paths in (entry.split("=", 1) for entry in options.networks)}
    for name, paths in named.items():
        if options.only and name not in options.only:
            continue
        if options.box:
            state = box()[0]
        else:
            path = options.weights / f"without_{name}.npz"
            if not path.exists():
                options.weights.mkdir(parents=True, exist_ok=True)
                others = [*options.networks, "--exclude", name, *["--unet"] * options.unet]
                pretrain.main([*others, "--out", str(path), "--minutes", str(options.minutes)])
            state = read_weights(path)[0]
        if options.plain:
            state = as_trained(state)
        network, rows = Network(state, unet=options.unet), []
        for archive in paths:
            for number, window in enumerate(windows(Path(archive), options.starts, options.size, options.places)):
                with_ensembles = number % max(1, options.starts * options.places // max(1, options.ensembles)) == 0
                ensembles = [Steps(num_members=20)] if with_ensembles and options.ensembles else []
                if ensembles and options.linda:
                    ensembles.append(Linda())
                rows += score(window, network, ensembles=ensembles)
        report(console, name, rows)
        everything += [{**row, "network": name} for row in rows]
    report(console, "all networks", everything)
    if options.reliability:
        draw_reliability(options.reliability, everything)
    if options.out:
        options.out.write_text(json.dumps(everything))


if __name__ == "__main__":
    main()
