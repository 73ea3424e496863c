"""The outputs of `python evaluate.py`: scores.nc, scores.csv, report.html, scores.txt and pictures."""

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from raincast import assembly
from raincast.commands import report
from raincast.system.provenance import commit
from raincast.version import __version__

if TYPE_CHECKING:
    import xarray as xr

    from raincast.data.radar import RadarData
    from raincast.data.sampler import Place
    from raincast.evaluation.report.event_maps import EventMaps
    from raincast.forecaster import Forecaster

log = logging.getLogger(__name__)

LEAST_RAIN = 0.1  # share of the mean event's wet pixels that an event needs to be drawn
MOST_LOOKED_AT = 60  # windows of an event that are searched for its wettest


def write_tables(scores: "xr.Dataset", run_dir: Path) -> tuple[str, list[Path]]:
    """Write scores.nc, scores.csv and scores.txt; return the text of the last, and the paths."""
    from raincast.evaluation import describe_protocol
    from raincast.evaluation.intervals import sentence
    from raincast.evaluation.report.tables import (
        difference_table,
        score_table,
        summary_table,
        table_text,
        write_csv,
    )

    threshold = report.goal_threshold([float(t) for t in scores["threshold"].values])
    tables = [score_table(scores, threshold=threshold), summary_table(scores)]
    if scores.sizes["forecaster"] > 1:
        tables.append(difference_table(scores))
    text = "\n".join([f"{sentence(scores)}\n", *map(table_text, tables), describe_protocol(scores)])
    path = run_dir / "scores.txt"
    path.write_text(text, encoding="utf-8")
    files = [report.write_scores(scores, run_dir / "scores.nc"), write_csv(scores, run_dir / "scores.csv"), path]
    return text, files


def write_page(
    scores: "xr.Dataset",
    forecasters: "Sequence[Forecaster]",
    data: "RadarData",
    checkpoint: assembly.Checkpoint | None,
    path: Path,
    settings: Mapping[str, Any],
) -> Path:
    """Write report.html; `settings` are those of the data. The first forecaster determines the events."""
    from raincast.evaluation.report.page import Evaluation, write_report

    threshold = report.goal_threshold([float(t) for t in scores["threshold"].values])
    asked = str(scores.attrs["split"])
    split = "test" if asked == "all" else asked  # where `TestAll` puts every window
    by_event = scores_by(scores, "event")
    with report.Bar("drawing events") as bar:
        maps = event_maps(by_event.sel(threshold=threshold), forecasters, data, split, bar)
    evaluation = Evaluation(
        scores,
        threshold,
        facts=facts(scores, data, checkpoint),
        by_event=by_event,
        by_hour=scores_by(scores, "hour") if "hourly_hits" in scores else None,
        config=yaml.safe_dump({"data": dict(settings)}) if checkpoint is None else str(checkpoint.info["config"]),
        maps=maps,
    )
    return write_report(evaluation, path, title=f"Evaluation on {asked} windows of {data.archive.path.name}")


def scores_by(scores: "xr.Dataset", dim: str) -> "xr.Dataset":
    """Return the scores of `AT_A_GLANCE` by `dim` (event or hour) over all lead times, `num_windows` and `wet`.

    `wet` (`dim`, threshold) counts the pixels of all windows and lead times that were observed to reach it.
    """
    from raincast.evaluation.groups import GROUPS, finish
    from raincast.evaluation.report.page import AT_A_GLANCE

    prefix, windows = {"event": ("sum_", "num_windows"), "hour": ("hourly_", "hourly_num_windows")}[dim]
    groups = [group for group in GROUPS if group.scores.keys() & AT_A_GLANCE]
    names = [f"{prefix}{name}" for group in groups for name in group.names()]
    sums = scores[[name for name in names if name in scores]].sum("lead_time")
    made = finish(sums, prefix=prefix)
    wet = sums[f"{prefix}hits"] + sums[f"{prefix}misses"]
    return made[[name for name in AT_A_GLANCE if name in made]].assign(
        num_windows=scores[windows], wet=wet.isel(forecaster=0, drop=True).astype(float)
    )


def event_maps(
    by_event: "xr.Dataset",
    forecasters: "Sequence[Forecaster]",
    data: "RadarData",
    split: str,
    bar: report.Bar,
) -> "list[EventMaps]":
    """Return the wettest window of the first forecaster's best, median and worst event.

    `by_event` holds its scores at one threshold.
    """
    own = by_event.sel(forecaster=forecasters[0].name)
    events = [str(event) for event in own["event"].values]
    places = places_by_event(data, split, events)
    values = dict(zip(events, own["csi"].values.tolist(), strict=True))
    # a nearly dry event would be the worst of most networks, and shows nothing
    rainy = dict(zip(events, own["wet"].values >= LEAST_RAIN * float(own["wet"].mean()), strict=True))
    ranked = [event for event in events if np.isfinite(values[event]) and rainy[event] and places[event]]
    ranked.sort(key=lambda event: -values[event])
    if not ranked:
        return []
    chosen = {"Best": ranked[0], "Median": ranked[len(ranked) // 2], "Worst": ranked[-1]}
    if len(ranked) < len(chosen):
        chosen = dict(zip(("Best", "Worst") if len(ranked) == 2 else ("The only",), ranked, strict=True))
    maps = []
    for done, (rank, event) in enumerate(chosen.items(), 1):
        note = (
            f"CSI of {forecasters[0].name} at ≥ {float(own['threshold']):g} mm/h over all lead times and "
            f"{len(places[event])} window{'s' * (len(places[event]) != 1)} of the event: {values[event]:.3f}. "
            "Shown is its wettest window."
        )
        maps.append(_maps_of(f"{rank} event: {event}", note, places[event], forecasters, data))
        bar.update(done, len(chosen))
    return maps


def places_by_event(data: "RadarData", split: str, events: list[str]) -> "dict[str, list[Place]]":
    """Return the windows of each event, which lasts at most until the next one begins."""
    places = data.eval_places(split)
    newest = np.array([data.sources[0].newest(place.start) for place in places], "datetime64[s]")
    starts = np.array([event.replace(" ", "T") for event in events], "datetime64[s]")
    number = np.searchsorted(np.sort(starts), newest, side="right") - 1
    ordered = [events[k] for k in np.argsort(starts)]
    found: dict[str, list[Place]] = {event: [] for event in events}
    for place, k in zip(places, number, strict=True):
        if k >= 0:
            found[ordered[k]].append(place)
    return found


def _maps_of(
    title: str, note: str, places: "list[Place]", forecasters: "Sequence[Forecaster]", data: "RadarData"
) -> "EventMaps":
    from raincast.evaluation import rates_by_name
    from raincast.evaluation.report.event_maps import EventMaps
    from raincast.plotting.rain_image import credit

    (place,) = data.wettest(places, at_most=MOST_LOOKED_AT)
    sample = data.dataset.sample(place)
    grid, step_minutes = data.archive.grid, data.archive.step_minutes
    return EventMaps(
        title=title,
        note=note,
        grid=grid.crop(place.y, place.x, place.height, place.width),
        init_time=np.datetime64(sample["time"], "s"),
        step_minutes=step_minutes,
        last_seen=sample["input"].numpy()[-1, 0],
        observed=sample["target"].numpy()[:, 0],
        forecasts=rates_by_name(
            forecasters, sample, lead_steps=data.lead_steps, step_minutes=step_minutes, grid=grid
        ),
        credit=credit(data.archive.attrs),
    )


def facts(
    scores: "xr.Dataset", data: "RadarData", checkpoint: assembly.Checkpoint | None
) -> dict[str, list[tuple[str, str]]]:
    """Return how the network was trained, if there is one, and what was scored: names and values by heading."""
    height, width = data.archive.grid.shape
    split = data.split_hash
    if checkpoint is not None:
        same = split == checkpoint.info["split_hash"]
        split += ", as in training" if same else ", not that of the training"
    described = [line.partition(":") for line in data.windows.describe().splitlines()]
    scored = [
        ("archive", f"{data.archive.path} (identity {data.archive.identity})"),
        ("grid (y × x)", f"{height} × {width}"),
        ("windows", f"{scores.attrs['num_windows']} of {scores.attrs['split']}, {scores.sizes['event']} events"),
        ("split", split),
        *((name.strip(), days.strip()) for name, _, days in described),
        *_took(scores.attrs),
        ("made", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC by raincast {__version__} ({commit()})"),
    ]
    return ({} if checkpoint is None else {"The network": _trained(checkpoint)}) | {"Scored on": scored}


def _trained(checkpoint: assembly.Checkpoint) -> list[tuple[str, str]]:
    info, config = checkpoint.info, checkpoint.config
    weights = [w for key, w in checkpoint.state.items() if key.startswith("network.")]
    identity = info["archive"]["identity"]
    trained = [
        ("checkpoint", str(checkpoint.path)),
        ("SHA-256", checkpoint.sha256),
        ("network", f"{checkpoint.network}, {sum(w.numel() for w in weights):,} parameters"),
        ("epochs", str(checkpoint.epoch + 1)),
        ("frames in and out", f"{info['input_steps']}, {info['lead_steps']}, of {info['step_minutes']:g} min"),
        ("trained on", f"{config['data']['archive'] or 'the built-in archive'} (identity {identity})"),
        ("source", str(info["archive"]["source"])),
        ("split", str(info["split_hash"])),
        ("raincast, torch", f"{info['raincast_version']}, {info['torch_version']}"),
    ]
    if "calibration" in info:
        on = info["calibration"]["fitted_on"]
        trained.append(("calibrated on", f"{on['num_windows']} validation windows of {on['archive']}"))
    return trained


def _took(attrs: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the time and memory that the scores took."""
    return [
        ("scored in", f"{attrs['wall_seconds']:.0f} s by {attrs['num_processes']} process(es)"),
        ("peak memory", f"{attrs['peak_memory_gib']:.2f} GiB, shared libraries counted once per process"),
        ("CPU seconds per window", str(attrs["cpu_seconds_per_window"])),
    ]
