"""Archives → samples: which windows exist, how they are split, drawn, cropped and batched."""
