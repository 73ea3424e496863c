"""`python evaluate.py compare=[a/scores.nc,b/scores.nc]`: join the scores of evaluations, without forecasting."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from raincast import assembly
from raincast.commands import report
from raincast.commands.evaluation_outputs import scores_by, write_tables

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> "xr.Dataset":
    """Join the scores of `cfg.compare`, and write report.html, scores.nc, scores.csv and csi.png."""
    from raincast.evaluation import Resampling, blocks, join, with_intervals
    from raincast.evaluation.report.page import Evaluation, write_report
    from raincast.evaluation.report.score_figures import csi_plot

    paths = [path / "scores.nc" if path.is_dir() else path for path in map(Path, cfg.compare)]
    if cfg.checkpoint not in (None, assembly.BOX):  # the default
        raise ValueError(f"compare= only joins scores: leave checkpoint={cfg.checkpoint} out.")
    each = read(paths)
    how = Resampling(cfg.resamples, cfg.confidence, cfg.resampling_seed)
    joined = join(each)
    if any("event_hours_from" in scores.attrs for scores in each.values()):
        joined = blocks.automatic(joined)  # the differences have changed
    scores = with_intervals(joined, how).assign_attrs(compared=", ".join(map(str, paths)))
    _tell_of_events(each, scores)
    run_dir = Path(cfg.paths.run_dir)
    text, files = write_tables(scores, run_dir)
    evaluation = Evaluation(
        scores,
        report.goal_threshold([float(t) for t in scores["threshold"].values]),
        facts={label: facts(own, path) for (label, own), path in zip(each.items(), paths, strict=True)},
        by_event=scores_by(scores, "event"),
        by_hour=scores_by(scores, "hour") if "hourly_hits" in scores else None,
    )
    files += [
        write_report(evaluation, run_dir / "report.html", title=f"Comparison of {', '.join(each)}"),
        csi_plot(scores, run_dir / "csi.png"),
    ]
    log.info("\n%s", text)
    log.info("written: %s", ", ".join(report.short(file) for file in files))
    return scores


def read(paths: Sequence[Path]) -> "dict[str, xr.Dataset]":
    """Read scores.nc files by label: the shortest end of the folder's path that tells the files apart.

    Raises ValueError or FileNotFoundError for fewer than two, missing or unreadable files.
    """
    import xarray as xr

    if len(paths) < 2:
        raise ValueError(f"compare={list(map(str, paths))}: give two or more, [a/scores.nc,b/scores.nc].")
    found = {}
    for label, path in zip(labels(paths), paths, strict=True):
        if not path.is_file():
            raise FileNotFoundError(f"There is no {path}. Give scores.nc of runs of evaluate.py.")
        try:
            found[label] = xr.load_dataset(path, engine="netcdf4")
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is not a scores.nc: {error}") from error
    return found


def labels(paths: Sequence[Path]) -> list[str]:
    """Return the shortest distinct ends of the folders' paths; of the files' paths if not called scores.nc."""
    parts = [path.resolve().with_suffix("").parts[1:] for path in paths]
    parts = [own[:-1] if own[-1] == "scores" and len(own) > 1 else own for own in parts]
    for depth in range(1, max(map(len, parts)) + 1):
        short = ["/".join(own[-depth:]) for own in parts]
        if len(set(short)) == len(short):
            return short
    raise ValueError(f"compare={list(map(str, paths))} names a file twice.")


def _tell_of_events(each: "dict[str, xr.Dataset]", scores: "xr.Dataset") -> None:
    num = int(scores["num_windows"].sum())
    left = {label: int(own["num_windows"].sum()) - num for label, own in each.items()}
    if any(left.values()):
        log.warning(
            "Compared: %d windows, in %d events, that all files scored on the same pixels. Left out: %s.",
            num,
            scores.sizes["event"],
            ", ".join(f"{count} of {label}" for label, count in left.items() if count),
        )


def facts(scores: "xr.Dataset", path: Path) -> list[tuple[str, str]]:
    """Return the origin of scores as rows of name and value."""
    attrs = scores.attrs
    kept = ("checkpoint", "checkpoint_sha256", "archive", "split", "split_hash", "num_windows")
    events = scores["event"].values
    return [
        ("file", str(path)),
        *((name.replace("_", " "), str(attrs[name])) for name in kept if name in attrs),
        ("events", f"{events.size}, {events[0]} to {events[-1]}"),
    ]
