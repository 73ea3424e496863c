"""`python ingest.py`: a service's radar files → an archive; `audit=` and `inspect=` examine an archive."""

import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from raincast import assembly
from raincast.commands import report

if TYPE_CHECKING:
    from raincast.archive import Archive
    from raincast.data.audit import Audit
    from raincast.data.radar import RadarData
    from raincast.plotting.archive_report import Section

log = logging.getLogger(__name__)

INPUT_STEPS, LEAD_STEPS = 6, 12  # of conf/data/radar.yaml, whose split by days is used, too
PAGES = (".html", ".htm")


def run(cfg: DictConfig) -> None:
    """Ingest `cfg.files`; exits with code 1 if files were bad or days failed, after all others are ingested."""
    if cfg.inspect is not None:
        inspect_archive(cfg)
        return
    if cfg.audit is not None:
        audit_archive(cfg)
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


def audit_archive(cfg: DictConfig) -> "Audit":
    """Audit an archive with the windows and split of `cfg.data`, or the archive of a checkpoint with its own.

    Exits with code 1 if a frame is in two splits, or the checkpoint was trained on another split.
    """
    from raincast.data.audit import audit
    from raincast.data.windows import frame_slots

    expected = None
    if str(cfg.audit).endswith(".ckpt"):
        checkpoint = assembly.read_checkpoint(cfg.audit)
        expected = str(checkpoint.info["split_hash"])
        settings = checkpoint.config["data"]
        archive = assembly.archive_path(cfg, archive=settings.get("archive"))
        data = assembly.data_of(settings, archive)
    else:
        archive = Path(cfg.audit)
        data = assembly.make(cfg.data, archive=str(archive))
    windows = data.windows
    found = audit(
        windows.starts, data.input_steps + data.lead_steps, frame_slots(data.archive.times, data.archive.step)
    )
    log.info("%s: %d frames\n%s", archive, data.archive.num_times, windows.describe())
    log.info("%s", _result(found, data))
    _warn_of_same_times(data)
    same = _compare(data.split_hash, expected)
    if not found.passed or not same:
        raise SystemExit(1)
    return found


def _result(found: "Audit", data: "RadarData") -> str:
    frames = ", ".join(f"{name} {number}" for name, number in found.num_frames.items())
    lines = [f"Frames in windows: {frames}."]
    for (a, b), slots in found.shared.items():
        if slots.size:
            first = data.archive.times[0] + slots[0] * data.archive.step
            lines.append(f"SHARED: {slots.size} frames are in {a} and in {b}, the first {first}.")
    if found.passed:
        apart = (
            ""
            if found.closest is None
            else f"; the nearest are {found.closest * data.archive.step_minutes:g} min apart"
        )
        lines.append(f"No frame is in two splits{apart}.")
    return "\n".join(lines)


def _warn_of_same_times(data: "RadarData") -> None:
    """Warn if another archive's training times are val or test times: two radars may see the same rain."""
    from raincast.data.audit import same_times, window_times

    main = data.sources[0]
    for source, windows in zip(data.sources[1:], data.more_windows, strict=True):
        times = window_times(source, windows.starts["train"])
        for name in ("val", "test"):
            number = same_times(times, window_times(main, data.windows.starts[name]), main.archive.step)
            if number:
                log.warning(
                    "%s: %d of its %d training times are also times of %s. If it sees the same rain, give it the "
                    "split (all:false) or leave it out.",
                    source.archive.path,
                    number,
                    times.size,
                    name,
                )


def _compare(found: str, expected: str | None) -> bool:
    if expected is None:
        log.info("Split %s, the same as in checkpoints trained with these settings.", found)
        return True
    if found == expected:
        log.info("Split %s: the same as in the checkpoint.", found)
        return True
    log.error(
        "Split %s, but the checkpoint has %s: its archive or its split has changed since it was trained.",
        found,
        expected,
    )
    return False


def inspect_archive(cfg: DictConfig) -> Path:
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
    told = [*archive_report.sections(statistics), _windows(archive)]
    log.info("%s\n%s", archive.path, archive_report.text(told))
    maps = archive_report.write_maps(statistics, page.with_suffix(".nc"))
    archive_report.write_page(statistics, told, page)
    log.info("\npage  %s\nmaps  %s", report.short(page), report.short(maps))
    return page


def _windows(archive: "Archive") -> "Section":
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
