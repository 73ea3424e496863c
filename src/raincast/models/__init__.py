"""Networks: the ConvLSTM layer and the encoder-forecasters built from it, tensors in network units."""

from raincast.models.convlstm import ConvLSTM
from raincast.models.encoder_forecaster import PyramidEncoderForecaster, StackedEncoderForecaster

__all__ = ["ConvLSTM", "PyramidEncoderForecaster", "StackedEncoderForecaster"]
