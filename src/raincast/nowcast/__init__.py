"""A forecast from its input to its files: radar frames as a series, a loaded network, a CF file and pictures."""

from raincast.nowcast.files import forecast_name, write_outputs
from raincast.nowcast.nowcaster import Nowcaster
from raincast.nowcast.series import ArchiveSeries, FileSeries, Series, grid_of, open_series

__all__ = [
    "ArchiveSeries",
    "FileSeries",
    "Nowcaster",
    "Series",
    "forecast_name",
    "grid_of",
    "open_series",
    "write_outputs",
]
