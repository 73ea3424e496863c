"""Precipitation nowcasting from weather radar with stacked ConvLSTM networks.

`load_forecaster(path)` loads a trained network: it takes a Dataset of radar frames and returns one of the
forecast.
"""

from typing import TYPE_CHECKING, Any

from raincast.version import __version__ as __version__

if TYPE_CHECKING:
    from pathlib import Path

    from raincast.forecasting import ForecastPipeline


def load_forecaster(path: "str | Path" = "box", *, device: str = "auto", **settings: Any) -> "ForecastPipeline":
    """The forecaster that comes with raincast, or that of a checkpoint or a file of `export.py`.

    `forecaster(dataset)` forecasts from a Dataset of frames; it is a `raincast.forecaster.Forecaster`, too.

    `device`: auto, cpu, cuda, cuda:1. `settings` are `raincast.forecasting.ForecastPipeline`'s: lead_steps,
    thresholds, max_missing, other_grid, products …
    """
    from raincast import assembly  # here, so that `import raincast` stays light

    return assembly.load_forecaster(path, device=device, **settings)
