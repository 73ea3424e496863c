"""Cost of a network: parameters, FLOPs, memory."""
