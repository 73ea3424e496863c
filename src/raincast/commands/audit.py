"""`python ingest.py audit=…`: a check that an archive's train, val and test windows share no frame."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from raincast import assembly

if TYPE_CHECKING:
    from raincast.data.audit import Audit
    from raincast.data.radar import RadarData

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> "Audit":
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
