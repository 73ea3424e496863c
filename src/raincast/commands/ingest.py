"""`python ingest.py`: a service's radar files → an archive."""

import logging
import shlex
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from raincast import assembly
from raincast.commands import audit, inspect, report

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> None:
    """Ingest `cfg.files`; exits with code 1 if files were bad or days failed, after all others are ingested."""
    if cfg.inspect is not None:
        inspect.run(cfg)
        return
    if cfg.audit is not None:
        audit.run(cfg)
        return
    _check_given(cfg)
    from raincast.ingest.pipeline import ingest
    from raincast.ingest.readers import Limited

    files = list(cfg.files) if isinstance(cfg.files, ListConfig) else str(cfg.files)
    reader = Limited(assembly.make(cfg.source), cfg.max_megapixels)
    grid: Any = OmegaConf.to_container(cfg.grid)
    try:
        with report.Bar("looking at files") as scan_bar, report.Bar("ingesting frames") as bar:
            result = ingest(
                files,
                Path(cfg.archive),
                reader,
                max_rate=cfg.max_rate,
                min_rate=cfg.min_rate,
                speck_pixels=cfg.speck_pixels,
                clutter_maps=cfg.clutter_maps,
                clutter_share=cfg.clutter_share,
                **grid,
                format=cfg.format,
                encoding=cfg.encoding,
                attrs=dict(cfg.attrs),
                replace=cfg.replace,
                max_off_step=cfg.max_off_step,
                workers=cfg.workers,
                scheduler=cfg.scheduler,
                progress=bar.update,
                scan_progress=scan_bar.update,
            )
    except KeyboardInterrupt:
        log.warning("Stopped. The finished days are kept; the same command continues with the others.")
        raise SystemExit(130) from None  # the shell's exit code for Ctrl-C
    given = shlex.quote(f"data.archive={cfg.archive}")
    log.info("\nNext, train on it:\n  python train.py experiment=radar %s", given)
    if result.problems:
        raise SystemExit(1)


def _check_given(cfg: DictConfig) -> None:
    missing = [key for key in ("archive", "files") if cfg[key] is None]
    if missing:
        raise ValueError(
            f"Not given: {', '.join(missing)}. For example: files='radar/*.h5' archive=data/NAME. To examine an "
            "archive, give inspect=data/NAME or audit=data/NAME"
        )
