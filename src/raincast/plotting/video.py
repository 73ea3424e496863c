"""Frames of palette numbers as an MP4: H.264, by the ffmpeg that imageio-ffmpeg brings along."""

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.uint8]


def check_installed() -> None:
    """ValueError where imageio-ffmpeg is not there."""
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        raise ValueError(
            'animation=mp4 needs the package imageio-ffmpeg: pip install -e ".[video]", or take animation=gif.'
        )


def save_mp4(
    frames: Sequence[Indices], path: Path, *, palette: Sequence[int], repeats: Sequence[int], frame_ms: int
) -> Path:
    """Write frames (H, W), each shown `repeats` times for `frame_ms`, whole or not at all; returns the path.

    `palette` holds red, green and blue, 0 to 255, of one number after the other. H.264 takes even sizes: a row or
    a column of the frame's last colours is added where needed.
    """
    check_installed()
    import imageio_ffmpeg

    colours = np.array(palette, np.uint8).reshape(-1, 3)
    height, width = frames[0].shape
    odd = ((0, height % 2), (0, width % 2))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    size = (width + width % 2, height + height % 2)
    # few colours, sharp edges: little is lost at this quality; the index first, so that browsers begin at once
    options = ["-crf", "16", "-preset", "medium", "-tune", "animation", "-movflags", "+faststart", "-f", "mp4"]
    writer = imageio_ffmpeg.write_frames(
        str(partial), size, fps=1000 / frame_ms, codec="libx264", quality=None, macro_block_size=1,
        ffmpeg_log_level="error", output_params=options,
    )  # fmt: skip
    try:
        writer.send(None)
        for frame, times in zip(frames, repeats, strict=True):
            picture = np.ascontiguousarray(colours[np.pad(frame, odd, mode="edge")])
            for _ in range(times):
                writer.send(picture)
        writer.close()
        partial.replace(path)
    finally:
        writer.close()
        partial.unlink(missing_ok=True)
    return path
