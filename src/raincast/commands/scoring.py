"""The scoring of `python evaluate.py`: config → work for all cores, whose sums outlive a kill → scores."""

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

    from raincast.data.datamodule import RadarDataModule
    from raincast.evaluation import Metrics
    from raincast.evaluation.work import Cost, ScoringWork
    from raincast.forecaster import Forecaster
    from raincast.forecasting.network import NetworkForecaster


def score(
    cfg: DictConfig,
    work: "ScoringWork",
    data: "RadarDataModule",
    *,
    here: Collection[str] = (),
    cost: "Cost | None" = None,
) -> "xr.Dataset":
    """Scores of all forecasters of `work` on `cfg.split`, by all cores; those in `here` stay in this process.

    Killed, the same command goes on with what is left: sums lie in `cfg.unfinished` until `engine.clear(work)`,
    which is for when the scores are written. `cost` is told what it took.
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
    data: "RadarDataModule",
    metrics: "Metrics",
) -> "ScoringWork":
    """The network of `checkpoint`, if there is one, and `cfg.baselines`, for all cores.

    `settings` (plain data) are those of `data`.
    """
    from raincast.evaluation import Scoring, blocks, check_names
    from raincast.evaluation.work import ScoringWork

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
        # a calibrated copy is written anew by each run: its weights, not its bytes
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
        data=functools.partial(assembly.datamodule_of, settings, data.archive.path),
        makers=makers | baselines,
        folders={name: unfinished / f"{name}-{_digest((follows, what))}" for name, what in own.items()},
        scoring=scoring,
        batch_size=data.eval_batch_size,
        grid=data.archive.grid,
    )


def network_of(
    path: Path, device: str, *, rule: str | None = None, members: int | None = None
) -> "NetworkForecaster":
    """The network in a checkpoint, in whatever process it is asked for, as `variant` makes it."""
    network = assembly.forecaster_of(assembly.read_checkpoint(path), device=device)
    return variant(network, rule=rule, members=members)


def variants(cfg: DictConfig) -> dict[str, dict[str, Any]]:
    """The network and its other forms to score, by name: arguments of `variant`."""
    rules = [cfg.rates_by] if isinstance(cfg.rates_by, str) else cfg.rates_by or []
    made: dict[str, dict[str, Any]] = {NETWORK: {}} | {f"{NETWORK}_{rule}": {"rule": rule} for rule in rules}
    if cfg.members is not None:
        made[f"{NETWORK}_members"] = {"members": cfg.members}
    return made


def variant(
    network: "NetworkForecaster", *, rule: str | None = None, members: int | None = None
) -> "NetworkForecaster":
    """The network as it is, with rates by another rule, or as an ensemble."""
    if members is not None:
        return network.as_ensemble(members)
    return network if rule is None else network.by_rule(rule)


def _key(cfg: DictConfig, data: "RadarDataModule", scoring: Any) -> str:
    """Changes with anything that any score follows from, this code included."""
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
    """The settings of a baseline, and what the files are that they name."""
    path = settings.get("path")
    return settings, part_key(Path(path)) if path and Path(path).exists() else None


def _weights(checkpoint: assembly.Checkpoint) -> str:
    digest = hashlib.sha256()
    for name, values in sorted(checkpoint.state.items()):
        digest.update(name.encode() + values.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _digest(what: Any) -> str:
    return hashlib.sha256(repr(what).encode()).hexdigest()[:16]
