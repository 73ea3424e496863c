"""Forecasting from input to files: radar frames as a series, a loaded network, a CF file and pictures."""

from raincast.forecasting.blending import Blending
from raincast.forecasting.files.outputs import Outputs, forecast_name, forecast_path, what_came, write_outputs
from raincast.forecasting.gaps import NoInput
from raincast.forecasting.hindcast import forecast_one, init_times, is_complete
from raincast.forecasting.memory import Memory
from raincast.forecasting.parallel import HindcastOutcome, HindcastWork, devices_of, forecast_all
from raincast.forecasting.pipeline import ForecastPipeline, Products
from raincast.forecasting.series import ArchiveSeries, FileSeries, Series, open_series
from raincast.forecasting.weather_model import ModelSettings, WeatherModel

__all__ = [
    "ArchiveSeries",
    "Blending",
    "FileSeries",
    "ForecastPipeline",
    "HindcastOutcome",
    "HindcastWork",
    "Memory",
    "ModelSettings",
    "NoInput",
    "Outputs",
    "Products",
    "Series",
    "WeatherModel",
    "devices_of",
    "forecast_all",
    "forecast_name",
    "forecast_one",
    "forecast_path",
    "init_times",
    "is_complete",
    "open_series",
    "what_came",
    "write_outputs",
]
