"""What the process that others are forked from imports; loaded by name, see `server` of running.py."""

import lightning.pytorch.callbacks
import lightning.pytorch.loggers
import netCDF4
import rich.progress
import torchmetrics
import xarray

import raincast.commands.evaluate
import raincast.commands.train
import raincast.data.datamodule
import raincast.evaluation
import raincast.plotting.pictures
import raincast.training.module

__all__ = ["lightning", "netCDF4", "raincast", "rich", "torchmetrics", "xarray"]
