"""The bundled weights (`box`): trained on several radar networks, they forecast on any without training."""

import json
import math
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from raincast.system.files import check_zip

BOX = "box"
"""Name of the bundled weights in settings."""

FORMAT = 1


def box_bytes_per_pixel(lead_steps: int) -> float:
    """Return the bytes per pixel that a forecast by the bundled weights allocates (`models.size`, CPU)."""
    return max(1070.0, 500.0 + 245.0 * lead_steps)


def box_whole_bytes_per_pixel(lead_steps: int) -> float:
    """Return the bytes per pixel that remain for the whole grid when its layers with weights go tile by tile."""
    return 400.0 + 87.0 * lead_steps


def write_weights(path: Path, state: Mapping[str, Tensor], info: Mapping[str, Any]) -> None:
    """Write tensors and metadata as one NumPy file without pickles."""
    arrays = {f"state.{name}": value.detach().cpu().float().numpy() for name, value in state.items()}
    text = np.array(json.dumps({"format": FORMAT, "torch_version": str(torch.__version__), **info}))
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, info=text, **arrays)


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and metadata written by `write_weights`; raises ValueError for any other or a damaged file."""
    try:
        with path.open("rb") as opened:
            check_zip(opened, packed=True)
        with np.load(path, allow_pickle=False) as file:
            info: dict[str, Any] = json.loads(str(file["info"]))
            prefix = "state."
            state = {
                name.removeprefix(prefix): torch.from_numpy(file[name])
                for name in file.files
                if name.startswith(prefix)
            }
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ValueError(f"{path} holds no weights of raincast, or is damaged: {error}") from error
    if info.get("format") != FORMAT:
        raise ValueError(f"{path} has format {info.get('format')}; this raincast reads {FORMAT}.")
    return state, info


class Scored(NamedTuple):
    """Scores of the bundled weights on data that they were not trained on.

    `csi` is the mean CSI at 1 mm/h after 30 minutes, by forecaster; `wet_share` is the share of pixels with at
    least 0.1 mm/h.
    """

    data: str
    pixel_km: float
    wet_share: float
    csi: dict[str, float]


def scores_like(pixel_km: float, wet_share: float) -> Scored:
    """Return the scores of the bundled weights on the most similar data, by pixel size and share of wet pixels."""
    scored = [Scored(**one) for one in box()[1]["scores"]]

    def distance(one: Scored) -> float:
        return abs(math.log(one.pixel_km / pixel_km)) + abs(math.log(one.wet_share / max(wet_share, 1e-3)))

    return min(scored, key=distance)


@cache
def box() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state of the bundled `LagrangianForecaster` and its model card: networks, scores, licences."""
    return read_weights(Path(str(files("raincast") / "weights" / "lagrangian.npz")))
