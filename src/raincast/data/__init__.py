"""From archives to samples: windows, splits, sampling, crops and batches."""
