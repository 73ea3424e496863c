"""What the process that others are forked from imports; loaded by name, see `server` of running.py."""

# ruff: noqa: E402
import contextlib
import gc
import importlib

gc.disable()  # until all is imported

import hydra.core.override_parser.overrides_parser
import lightning.pytorch.callbacks
import lightning.pytorch.loggers
import netCDF4
import rich.progress
import running
import torchmetrics
import xarray

import raincast.baselines
import raincast.commands.evaluate
import raincast.commands.forecast
import raincast.commands.train
import raincast.data.datamodule
import raincast.evaluation
import raincast.evaluation.report.page
import raincast.forecasting
import raincast.forecasting.network
import raincast.plotting.pictures
import raincast.training.module

for name in ("dask.array", "distributed"):  # xarray imports them when it writes a file
    with contextlib.suppress(ImportError):
        importlib.import_module(name)

gc.freeze()  # a fork's garbage collector need not look at what was imported
gc.enable()

__all__ = ["hydra", "lightning", "netCDF4", "raincast", "rich", "running", "torchmetrics", "xarray"]
