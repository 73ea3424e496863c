"""The scoring of `python evaluate.py`: config → work for all cores, whose sums survive a kill → scores."""

import functools
import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from raincast import assembly
from raincast.commands import report
from raincast.data.rain import part_key
from raincast.forecaster import NETWORK
from raincast.system.provenance import code_hash
from raincast.version import __version__

if TYPE_CHECKING:
    import xarray as xr

    from raincast.data.radar import RadarData
    from raincast.evaluation import Metrics
    from raincast.evaluation.engine import Cost, ScoringWork
    from raincast.forecaster import Forecaster
    from raincast.forecasting.network import NetworkForecaster


def score(
    cfg: DictConfig,
    work: "ScoringWork",
    data: "RadarData",
    *,
    here: Collection[str] = (),
    cost: "Cost | None" = None,
) -> "xr.Dataset":
    """Score all forecasters of `work` on `cfg.split` with all cores; those in `here` stay in this process.

    After a kill, the same command continues: sums are in `cfg.unfinished` until `engine.clear(work)`, which is
    called when the scores are written. `cost` records time and memory. Raises ValueError if there is no window.
    """
    from raincast.evaluation import Resampling, blocks, engine, to_dataset, with_intervals

    how = Resampling(cfg.resamples, cfg.confidence, cfg.resampling_seed)
    places = data.eval_places(cfg.split)
    if not places:
        raise ValueError(f"There is no window to score in split={cfg.split}: change data.split or data.archive.")
    with report.Bar(f"scoring {', '.join(work.makers)}") as bar:
        sums = engine.run(work, places, workers=cfg.workers, here=here, progress=bar.update, cost=cost)
    scores = to_dataset(sums, work.scoring, lead_steps=data.lead_steps, shape=data.eval_crop)
    if cfg.metrics.event_hours is None:
        scores = blocks.automatic(scores)
    return with_intervals(scores, how).assign_attrs(
        split=cfg.split, split_hash=data.windows.hash, archive=str(data.archive.path)
    )


def work_of(
    cfg: DictConfig,
    settings: Mapping[str, Any],
    checkpoint: assembly.Checkpoint | None,
    data: "RadarData",
    metrics: "Metrics",
) -> "ScoringWork":
    """Return the work for all cores: the network of `checkpoint`, if there is one, and `cfg.baselines`.

    `settings` (plain data) are those of `data`.
    """
    from raincast.evaluation import Scoring, blocks, check_names
    from raincast.evaluation.engine import ScoringWork

    if metrics.event_hours is None:
        newest = np.array([data.sources[0].newest(place.start) for place in data.eval_places(cfg.split)])
        metrics = replace(metrics, event_hours=blocks.kept_hours(newest))
    makers: dict[str, Callable[[], Forecaster]] = {}
    own: dict[str, Any] = {}
    if checkpoint is not None:
        made_how = variants(cfg)
        for name, how in made_how.items():
            makers[name] = functools.partial(network_of, checkpoint.path, cfg.device, **how)
        calibration = checkpoint.info.get("calibration")
        # a calibrated copy is written again by each run, so its weights identify it, not its bytes
        weights = checkpoint.sha256 if calibration is None else _weights(checkpoint)
        own |= {name: (weights, calibration, how) for name, how in made_how.items()}
    baselines = assembly.baseline_makers(cfg)
    check_names([*makers, *baselines])
    own |= {
        name: _settings_key(OmegaConf.to_container(cfg.baseline[key], resolve=True))
        for name, key in zip(baselines, cfg.baselines, strict=True)
    }
    scoring = Scoring(metrics, data.archive.step_minutes, data.archive.grid.pixel_km)
    follows = _key(cfg, data, scoring)
    unfinished = Path(cfg.unfinished)
    return ScoringWork(
        key=follows,
        data=functools.partial(assembly.data_of, settings, data.archive.path),
        makers=makers | baselines,
        folders={name: unfinished / f"{name}-{_digest((follows, what))}" for name, what in own.items()},
        scoring=scoring,
        batch_size=data.eval_batch_size,
        grid=data.archive.grid,
    )


def network_of(
    path: Path, device: str, *, rule: str | None = None, members: int | None = None
) -> "NetworkForecaster":
    """Load the network of a checkpoint, in whichever process calls this, in the form that `variant` gives it."""
    network = assembly.forecaster_of(assembly.read_checkpoint(path), device=device)
    return variant(network, rule=rule, members=members)


def variants(cfg: DictConfig) -> dict[str, dict[str, Any]]:
    """Return the network and its other variants to score, by name: arguments of `variant`."""
    rules = [cfg.rates_by] if isinstance(cfg.rates_by, str) else cfg.rates_by or []
    made: dict[str, dict[str, Any]] = {NETWORK: {}} | {f"{NETWORK}_{rule}": {"rule": rule} for rule in rules}
    if cfg.members is not None:
        made[f"{NETWORK}_members"] = {"members": cfg.members}
    return made


def variant(
    network: "NetworkForecaster", *, rule: str | None = None, members: int | None = None
) -> "NetworkForecaster":
    """Return the network unchanged, with rates by another rule, or as an ensemble."""
    if members is not None:
        return network.as_ensemble(members)
    return network if rule is None else network.by_rule(rule)


def _key(cfg: DictConfig, data: "RadarData", scoring: Any) -> str:
    """Return a hash that changes with anything that determines a score, including this code."""
    return _digest(
        (
            __version__,
            code_hash(),
            [part_key(part.path) for part in data.archive.parts],
            data.windows.hash,
            data.eval_places(cfg.split),
            (data.input_steps, data.lead_steps, data.max_missing, data.eval_batch_size),
            scoring,
        )
    )


def _settings_key(settings: Any) -> Any:
    """Return the settings of a baseline, and a key of the files that they name."""
    path = settings.get("path")
    return settings, part_key(Path(path)) if path and Path(path).exists() else None


def _weights(checkpoint: assembly.Checkpoint) -> str:
    digest = hashlib.sha256()
    for name, values in sorted(checkpoint.state.items()):
        digest.update(name.encode() + values.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _digest(what: Any) -> str:
    return hashlib.sha256(repr(what).encode()).hexdigest()[:16]
