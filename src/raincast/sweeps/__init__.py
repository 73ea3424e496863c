"""Sweeps: workers that share one Optuna study, each trial a training run in a process of its own."""
