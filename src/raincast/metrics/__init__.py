"""Scores as additive sums first and ratios last. Rain rates in mm/h, tensors (B, T, C, H, W)."""

from raincast.metrics.categorical import Contingency, contingency
from raincast.metrics.continuous import ErrorSums, error_sums
from raincast.metrics.rain_scores import RainScores

__all__ = ["Contingency", "ErrorSums", "RainScores", "contingency", "error_sums"]
