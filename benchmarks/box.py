"""Complete trained weights for the box: adapt them to radars that were not trained on, and add scores.

    python benchmarks/leave_one_out.py --box mch=data/mch2016 --starts 8 --ensembles 0 --out mch.json
    python benchmarks/box.py weights.npz --scored "MeteoSwiss, 11 July 2016" 1.0 0.13 mch.json --scored …

`--scored` takes a name, the pixel size in km, the share of pixels of 0.1 mm/h or more, and the rows that
`benchmarks/leave_one_out.py` wrote. `forecast.py` names the scores on the data most like its input.
"""

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raincast.models.weights import read_weights, write_weights
from raincast.transforms import THRESHOLDS

CERTAINTY, UNTIL, GONE_AT = 1.2, 2.0, 8.0
"""Factor up to a threshold in mm/h; it falls to 1 at the other, linearly in the logarithm."""
LOCATION = 0.5
"""Share of the learned correction of the location that is kept: half of it fits the radars of training alone."""
NAMES = {"area": "raincast", "sprog": "S-PROG", "extrapolation": "extrapolation"}


def certainty() -> torch.Tensor:
    """Return the factor of each threshold, (K,)."""
    shares = [math.log(threshold / UNTIL) / math.log(GONE_AT / UNTIL) for threshold in THRESHOLDS]
    return torch.tensor([CERTAINTY + (1.0 - CERTAINTY) * min(1.0, max(0.0, share)) for share in shares])


def for_other_radars(core: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the state of `LagrangianForecaster` for radars that were not trained on, from that of its core."""
    state = {f"core.{name}": value.clone() for name, value in core.items()}
    for name in ("core.out.weight", "core.out.bias"):
        state[name][0] *= LOCATION
    return state | {"certainty": certainty()}


def as_trained(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Undo `for_other_radars`."""
    made = {name: value.clone() for name, value in state.items()}
    for name in ("core.out.weight", "core.out.bias"):
        made[name][0] /= LOCATION
    return made | {"certainty": torch.ones_like(made["certainty"])}


def scores_of(name: str, pixel_km: float, wet_share: float, rows: Path) -> dict[str, Any]:
    """Return the mean CSI at 1 mm/h after 30 minutes by forecaster."""
    csi: dict[str, list[float]] = {who: [] for who in NAMES}
    for row in json.loads(rows.read_text()):
        if (row["score"], row["lead"]) == ("csi1", 30) and row["who"] in csi:
            csi[row["who"]].append(row["value"])
    means = {NAMES[who]: round(float(np.mean(values)), 3) for who, values in csi.items()}
    return {"data": name, "pixel_km": pixel_km, "wet_share": wet_share, "csi": means}


def main() -> None:
    """Read the weights, complete and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--scored", nargs=4, action="append", default=[], metavar=("NAME", "KM", "WET", "ROWS"))
    options = parser.parse_args()
    state, info = read_weights(options.weights)
    scores = [scores_of(name, float(km), float(wet), Path(rows)) for name, km, wet, rows in options.scored]
    write_weights(options.weights, state, {key: info[key] for key in info if key != "format"} | {"scores": scores})


if __name__ == "__main__":
    main()
