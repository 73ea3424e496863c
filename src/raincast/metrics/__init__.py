"""Scores as additive sums first and ratios last. Rain rates in mm/h, tensors (B, T, C, H, W).

`RainScores`, which accumulates them in training, is in `rain_scores`: it needs torchmetrics, which takes longer to
import than a forecast does to make.
"""

from raincast.metrics.categorical import Contingency, contingency
from raincast.metrics.continuous import ErrorSums, error_sums

__all__ = ["Contingency", "ErrorSums", "contingency", "error_sums"]
