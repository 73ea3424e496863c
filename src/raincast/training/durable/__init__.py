"""State that survives a kill: checkpoints, signals, logs, random streams."""
