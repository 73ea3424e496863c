"""Precipitation nowcasting from weather radar with stacked ConvLSTM networks.

`load_forecaster(path)` gives a trained network that takes a Dataset of radar frames and gives one of its forecast.
"""

from typing import TYPE_CHECKING, Any

from raincast.version import __version__ as __version__

if TYPE_CHECKING:
    from pathlib import Path

    from raincast.forecasting import Nowcaster


def load_forecaster(path: "str | Path", *, device: str = "auto", **settings: Any) -> "Nowcaster":
    """The network in a checkpoint, or in a file of `export.py`; `forecaster(dataset)` forecasts.

    `device`: auto, cpu, cuda, cuda:1. `settings` are `raincast.forecasting.Nowcaster`'s: lead_steps, thresholds,
    max_missing, other_grid, products …
    """
    from raincast import assembly  # here, so that `import raincast` stays light

    return assembly.load_nowcaster(path, device=device, **settings)
