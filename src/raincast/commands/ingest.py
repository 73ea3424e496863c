"""`python ingest.py`: a service's radar files → an archive."""

import logging
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from raincast import build
from raincast.commands import report

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> None:
    """Ingest `cfg.files`; exit code 1 where files were bad or days failed, after all others are in."""
    from raincast.ingest.archive import ingest

    files = list(cfg.files) if isinstance(cfg.files, ListConfig) else str(cfg.files)
    reader = build.make(cfg.source)
    grid = OmegaConf.to_container(cfg.grid)
    assert isinstance(grid, dict)
    try:
        with report.Bar("looking at files") as scan_bar, report.Bar("ingesting frames") as bar:
            result = ingest(
                files,
                Path(cfg.archive),
                reader,
                max_rate=cfg.max_rate,
                min_rate=cfg.min_rate,
                crop=grid["crop"],
                coarsen=grid["coarsen"],
                workers=cfg.workers,
                progress=bar.update,
                scan_progress=scan_bar.update,
            )
    except KeyboardInterrupt:
        log.warning("Stopped. The days that are written stay; the same command goes on with the others.")
        raise SystemExit(130) from None  # as a shell counts Ctrl-C
    log.info("\nNext, train on it:\n  python train.py experiment=radar data.archive=%s", cfg.archive)
    if result.problems:
        raise SystemExit(1)
