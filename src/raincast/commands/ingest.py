"""`python ingest.py`: a service's radar files → an archive."""

import logging
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from raincast import build
from raincast.commands import report

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> None:
    """Ingest `cfg.files`; exit code 1 where files were bad, after all others are in."""
    from raincast.ingest.archive import ingest

    files = list(cfg.files) if isinstance(cfg.files, ListConfig) else str(cfg.files)
    reader = build.make(cfg.source)
    with report.Bar("ingesting") as bar:
        result = ingest(
            files,
            Path(cfg.archive),
            reader,
            max_rate=cfg.max_rate,
            min_rate=cfg.min_rate,
            progress=bar.update,
            config_text=build.config_text(
                OmegaConf.create({k: cfg[k] for k in ("source", "max_rate", "min_rate")})
            ),
        )
    log.info("\nNext, train on it:\n  python train.py experiment=radar data.archive=%s", cfg.archive)
    if result.bad_files:
        raise SystemExit(1)
