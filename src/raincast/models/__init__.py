"""Networks: the ConvLSTM layer and the encoder-forecasters built from it, tensors in network units."""

from raincast.models.encoder_forecaster import PyramidEncoderForecaster, StackedEncoderForecaster
from raincast.models.layers.convlstm import ConvLSTM

__all__ = ["ConvLSTM", "PyramidEncoderForecaster", "StackedEncoderForecaster"]
