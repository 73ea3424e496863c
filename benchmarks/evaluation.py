"""CPU time per window of forecasting and scoring.

    python benchmarks/evaluation.py [--windows 1000] [--metrics full]

Windows are built-in rain, 12 + 12 frames of 256². Forecasters are the default network with initial weights (or the
trained one of `--checkpoint` with its own number of frames), extrapolation with Lucas-Kanade, and persistence. One
thread is used, as in each process of evaluate.py; on a busy machine CPU times and their ratio are still valid. The
share is scoring over forecasting.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from raincast import assembly
from raincast.baselines import Extrapolation, Persistence
from raincast.cli import HYDRA_VERSION_BASE, conf_dir
from raincast.data.radar import RadarData
from raincast.data.sampler import Place
from raincast.data.windows import TrainAll
from raincast.evaluation import EventSums, Scoring
from raincast.evaluation.queries import Scored
from raincast.forecasting.network import NetworkForecaster
from raincast.synthetic import build_builtin_archive

STEPS, SIZE, FRAMES = 12, 256, 64


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=1000)
    parser.add_argument("--metrics", default="rain")
    parser.add_argument("--checkpoint", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        build_builtin_archive(Path(folder) / "rain", num_days=1, frames_per_day=FRAMES, size=SIZE)
        with initialize_config_dir(str(conf_dir()), version_base=HYDRA_VERSION_BASE):
            cfg = compose("train", ["experiment=convlstm", f"metrics={asked.metrics}", "paths.run_dir=."])
        network = (
            assembly.forecaster_of(assembly.read_checkpoint(asked.checkpoint), device="cpu")
            if asked.checkpoint
            else untrained(cfg)
        )
        seen, leads = network.input_steps, network.lead_steps
        data = RadarData(Path(folder) / "rain", split=TrainAll(), input_steps=seen, lead_steps=leads)
        places = [Place(start, 0, 0, SIZE, SIZE) for start in range(FRAMES - seen - leads + 1)]
        scoring = Scoring(assembly.metrics(cfg, data), 5.0, data.archive.grid.pixel_km)
        sys.stdout.write(f"{asked.windows} windows of {seen + leads} × {SIZE}², metrics={asked.metrics}\n")
        for forecaster in (network, Extrapolation(), Persistence()):
            scored = Scored(forecaster, scoring, lead_steps=leads, grid=data.archive.grid)
            spent, sums = [0.0, 0.0, 0.0], EventSums()
            for number in range(asked.windows):
                at = [time.process_time()]
                stored = torch.utils.data.default_collate([data.dataset[places[number % len(places)]]])
                batch = data.dataset.decode(stored)
                at.append(time.process_time())
                prediction = scored.predict(batch)
                at.append(time.process_time())
                scoring.add(sums, prediction, batch)
                at.append(time.process_time())
                spent = [
                    total + after - before for total, before, after in zip(spent, at[:-1], at[1:], strict=True)
                ]
            read, forecast, score = (1000 * total / asked.windows for total in spent)
            sys.stdout.write(
                f"{forecaster.name:14} read {read:6.1f} ms  forecast {forecast:7.1f} ms  score {score:6.1f} ms  "
                f"share {score / forecast:6.1%}\n"
            )


def untrained(cfg: DictConfig) -> NetworkForecaster:
    """Return the network of `cfg` with initial weights."""
    own_head = assembly.head(cfg)
    return NetworkForecaster(
        assembly.network(OmegaConf.to_container(cfg.model, resolve=True), num_channels=own_head.num_channels),
        own_head,
        assembly.make(cfg.transform),
        name="network",
        input_steps=STEPS,
        lead_steps=STEPS,
        step_minutes=5.0,
    )


if __name__ == "__main__":
    main()
