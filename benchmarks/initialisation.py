"""Which initialisation of the weights learns fastest: the loss after N steps, over seeds.

    python benchmarks/initialisation.py [--steps 80] [--seeds 5] [--model convlstm_small] [--json FILE]

Every initialisation sees the same crops of the built-in archive (which is built if it is missing), with the
optimiser of `experiment=convlstm` at a constant rate. The figure is the mean training loss over the last fifth of
the steps; a difference counts if its mean over seeds is more than twice its standard error.
"""

import argparse
import math
import statistics
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from timing import write_json
from torch import Tensor

from raincast.data.datamodule import RadarDataModule
from raincast.data.windows import BlockSplit
from raincast.losses import BalancedLoss
from raincast.models.inputs import to_network_scale
from raincast.synthetic import build_builtin_archive
from raincast.transforms import DbzScaling

CONF = Path(__file__).parents[1] / "conf"
STARTS = {
    f"{how}, forget bias {bias:g}": {"initialisation": how, "forget_bias": bias}
    for how in ("xavier", "he", "orthogonal")
    for bias in (0.0, 1.0)
}

Batch = tuple[Tensor, Tensor, Tensor]


def batches(archive: Path, transform: DbzScaling, *, steps: int, seed: int) -> list[Batch]:
    """Return crops as training draws them: input and target in network units, and the mask."""
    data = RadarDataModule(
        archive, split=BlockSplit(), crop=64, batch_size=8, samples_per_epoch=8 * steps, num_workers=0, seed=seed
    )
    data.setup("fit")
    found: list[Batch] = []
    while len(found) < steps:  # an archive with fewer crops is read again
        for batch in map(data.dataset.decode, data.train_dataloader()):
            frames = to_network_scale(transform, batch["input"])
            found.append((frames, transform.forward(batch["target"]), batch["target_mask"]))
    return found[:steps]


def final_loss(model: str, start: dict[str, object], crops: list[Batch], *, seed: int, lr: float) -> float:
    """Return the mean loss over the last fifth of the steps."""
    config = OmegaConf.load(CONF / "model" / f"{model}.yaml")
    base = OmegaConf.load(CONF / "model" / "convlstm.yaml") if "defaults" in config else OmegaConf.create()
    merged = OmegaConf.merge(base, config, {"cell": start})
    del_defaults = {key: value for key, value in OmegaConf.to_container(merged).items() if key != "defaults"}
    torch.manual_seed(seed)
    network = instantiate(del_defaults, _convert_="object")
    loss_of = BalancedLoss(DbzScaling())
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    losses = []
    for frames, target, mask in crops:
        loss = loss_of(network(frames, target.shape[1]), target, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return statistics.fmean(losses[-max(1, len(losses) // 5) :])


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--model", default="convlstm_small")
    parser.add_argument("--archive", type=Path, default=Path("data/builtin"))
    parser.add_argument("--json", type=Path, default=Path("outputs/benchmarks/initialisation.json"))
    args = parser.parse_args()
    build_builtin_archive(args.archive)
    losses: dict[str, list[float]] = {name: [] for name in STARTS}
    for seed in range(args.seeds):
        crops = batches(args.archive, DbzScaling(), steps=args.steps, seed=seed)
        for name, start in STARTS.items():
            losses[name].append(final_loss(args.model, start, crops, seed=seed, lr=args.lr))
    best = min(losses, key=lambda name: statistics.fmean(losses[name]))
    table = Table(title=f"Loss after {args.steps} steps, {args.seeds} seeds, {args.model}")
    for heading in ("start", "loss", "over the best", "± standard error"):
        table.add_column(heading, justify="left" if heading == "start" else "right")
    for name, found in sorted(losses.items(), key=lambda item: statistics.fmean(item[1])):
        differences = [a - b for a, b in zip(found, losses[best], strict=True)]
        error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else math.nan
        means = [statistics.fmean(found), statistics.fmean(differences), error]
        table.add_row(name, *(f"{value:.5f}" for value in means))
    Console(width=120).print(table)
    write_json(args.json, {"losses": losses, "steps": args.steps, "model": args.model, "lr": args.lr})


if __name__ == "__main__":
    main()
