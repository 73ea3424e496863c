"""Precipitation nowcasting from weather radar with stacked ConvLSTM networks."""

__version__ = "0.1.0"
