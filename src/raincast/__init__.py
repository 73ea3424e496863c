"""Precipitation nowcasting from weather radar with stacked ConvLSTM networks.

- `open_radar(files)`, `open_archive(path)`: radar files, or an archive, as a Dataset of rain rates
- `open_sample()`: an event of real radar that comes with raincast
- `load_forecaster()`: the network that comes with raincast, or yours: a Dataset of frames in, a forecast out
- `train("experiment=radar", archive=path)`: train one, as `python train.py` does
- `evaluate(frames, forecasters)`: their scores on the same windows, with intervals, as a Dataset
- `metrics.csi(forecast, observed, threshold=1)` and others: scores of DataArrays
- `models`, `training`, `data`, `evaluation`, …: the parts, for programs of their own
"""

import importlib
from typing import TYPE_CHECKING, Any

from raincast.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from raincast.api import evaluate, open_archive, open_radar, open_sample, train
    from raincast.forecasting import ForecastPipeline

__all__ = ["__version__", "evaluate", "load_forecaster", "open_archive", "open_radar", "open_sample", "train"]

_API = ("evaluate", "open_archive", "open_radar", "open_sample", "train")
_ROOMS = ("archive", "baselines", "data", "evaluation", "forecasting", "losses", "metrics", "models", "training")


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is, so that `import raincast` stays light."""
    if name in _API:
        return getattr(importlib.import_module("raincast.api"), name)
    if name in _ROOMS:
        return importlib.import_module(f"raincast.{name}")
    raise AttributeError(
        f"raincast has no {name!r}; it has {', '.join(__all__[1:])}, and the rooms {', '.join(_ROOMS)}."
    )


def __dir__() -> list[str]:
    """Return the public names, for completion in shells."""
    return sorted({*globals(), *__all__, *_ROOMS})


def load_forecaster(path: "str | Path" = "box", *, device: str = "auto", **settings: Any) -> "ForecastPipeline":
    """Load the forecaster of a checkpoint or of a file of `export.py`; by default the bundled one.

    `forecaster(dataset)` forecasts from a Dataset of frames; it is a `raincast.forecaster.Forecaster`, too.

    `device`: auto, cpu, cuda, cuda:1. `settings` are `raincast.forecasting.ForecastPipeline`'s: lead_steps,
    thresholds, max_missing, other_grid, products …
    """
    from raincast import assembly  # here, so that `import raincast` stays light

    return assembly.load_forecaster(path, device=device, **settings)
