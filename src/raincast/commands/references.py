"""Baselines on the validation windows: scored once, cached, and compared with every validation of every run."""

import contextlib
import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from raincast import assembly
from raincast.commands import report
from raincast.data.rain import part_key
from raincast.system.files import atomic
from raincast.system.lock import waited_for
from raincast.system.paths import cache_folder
from raincast.system.provenance import code_hash
from raincast.version import __version__

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor

    from raincast.data.radar import RadarData

log = logging.getLogger(__name__)

SOURCES = ("evaluation", "metrics", "baselines", "forecaster")
"""The code on which the scores depend, besides windows and settings; if it changes, they are computed again."""


def reference_scores(cfg: DictConfig, data: "RadarData") -> "xr.Dataset | None":
    """Return the scores of `cfg.baselines` on the validation windows of `data`, or None without baselines.

    Scores that were computed before come from the cache. Of several processes one scores, and the others wait for
    it.
    """
    names = list(cfg.baselines)
    if not names:
        return None
    try:
        path = cache_folder() / "references" / f"{_key(cfg, data)}.nc"
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        log.debug("The baselines' scores are not cached: %s", error)
        return _score(cfg, data)
    with waited_for(path.with_suffix(".lock")):
        if (kept := _load(path)) is not None:
            return kept
        scores = _score(cfg, data)
        try:
            with atomic(path, sole=True) as partial:
                report.write_scores(scores, partial)
        except OSError as error:
            log.warning("The baselines' scores could not be cached in %s: %s", path, error)
    return scores


def as_tensors(scores: "xr.Dataset | None") -> "Mapping[str, Mapping[str, Tensor]]":
    """Return each baseline's CSI (K, T) and RMSE (T), for training."""
    import torch

    if scores is None:
        return {}
    return {
        str(name): {
            key: torch.from_numpy(scores[key].sel(forecaster=name).values.astype("float64"))
            for key in ("csi", "rmse")
        }
        for name in scores["forecaster"].values
    }


def _score(cfg: DictConfig, data: "RadarData") -> "xr.Dataset":
    forecasters = assembly.baselines(cfg, list(cfg.baselines))
    log.info("Scoring %s on the validation windows, once for all runs.", " and ".join(f.name for f in forecasters))
    return report.score(forecasters, data, "val", assembly.metrics(cfg, data))


def _key(cfg: DictConfig, data: "RadarData") -> str:
    settings = {name: OmegaConf.to_container(cfg.baseline[name], resolve=True) for name in cfg.baselines}
    follows = (
        __version__,
        code_hash(*SOURCES),
        settings,
        [part_key(part.path) for part in data.archive.parts],
        data.windows.hash,
        data.eval_places("val"),
        (data.input_steps, data.lead_steps, data.max_missing),
        assembly.metrics(cfg, data),
    )
    return hashlib.sha256(repr(follows).encode()).hexdigest()[:24]


def _load(path: Path) -> "xr.Dataset | None":
    import xarray as xr

    if path.is_file():
        with contextlib.suppress(OSError, ValueError), xr.open_dataset(path, engine="netcdf4") as kept:
            return kept.load()
    return None
