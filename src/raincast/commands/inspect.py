"""`python ingest.py inspect=ARCHIVE`: the contents of an archive, on the terminal and as a page."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from raincast.commands import report

if TYPE_CHECKING:
    from raincast.archive import Archive
    from raincast.plotting.archive_report import Section

log = logging.getLogger(__name__)

INPUT_STEPS, LEAD_STEPS = 6, 12  # of conf/data/radar.yaml, whose split by days is used, too
PAGES = (".html", ".htm")


def run(cfg: DictConfig) -> Path:
    """Read the archive `cfg.inspect` once; return the path of the page. The maps are next to it."""
    given = [key for key in ("files", "archive") if cfg[key] is not None]
    if given:
        raise ValueError(
            f"inspect={cfg.inspect} reads an archive and writes none: leave out {' and '.join(given)}."
        )
    page = Path(cfg.report or Path(cfg.paths.run_dir) / "inspection.html")
    if page.suffix not in PAGES:
        raise ValueError(f"report={cfg.report} is an HTML page: its name must end in {' or '.join(PAGES)}.")
    from raincast.archive import Archive
    from raincast.archive.statistics import measure
    from raincast.plotting import archive_report

    archive = Archive.open(cfg.inspect)
    with report.Bar("reading frames") as bar:
        statistics = measure(archive, bar.update)
    told = [*archive_report.sections(statistics), windows(archive)]
    log.info("%s\n%s", archive.path, archive_report.text(told))
    maps = archive_report.write_maps(statistics, page.with_suffix(".nc"))
    archive_report.write_page(statistics, told, page)
    log.info("\npage  %s\nmaps  %s", report.short(page), report.short(maps))
    return page


def windows(archive: "Archive") -> "Section":
    """Return how many windows the default split gives to train, validation and test."""
    from raincast.data.windows import SPLITS, BlockSplit, split_windows
    from raincast.plotting.archive_report import Section

    num_frames = INPUT_STEPS + LEAD_STEPS
    title = (
        f"Windows of {num_frames} frames ({INPUT_STEPS} seen, {LEAD_STEPS} forecast), whole days drawn by chance"
    )
    try:
        starts = split_windows(archive.times, archive.step, num_frames, BlockSplit()).starts
    except ValueError as error:
        return Section(title, [("none", str(error))])
    return Section(title, [(split, str(starts[split].size)) for split in SPLITS])
