"""`raincast summary`: the cost of a network of the config at given sizes, before it is trained."""

from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from rich import box
from rich.console import Console, Group
from rich.table import Table

from raincast import assembly

if TYPE_CHECKING:
    from raincast.models.size import LayerSummary, NetworkSummary

WIDTH = 100
"""Number of columns that the table needs."""

SIZES = ("batch_size", "input_steps", "lead_steps", "height", "width")


def run(cfg: DictConfig) -> None:
    """Print the layers, parameters, FLOPs and memory of `cfg.model`."""
    summary, device = summarise(cfg)
    console = Console()
    console.width = max(console.width, WIDTH)  # it would be 80 if the output is not a terminal
    console.print(layer_table(summary), totals(summary, device), sep="\n")


def summarise(cfg: DictConfig) -> "tuple[NetworkSummary, str]":
    """Return the summary of `cfg.model` at the sizes of `cfg`, and its device (cpu or cuda)."""
    import torch

    from raincast.models import size

    device = cfg.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = OmegaConf.to_container(cfg.model, resolve=True)
    head = assembly.head(cfg)
    with torch.device("meta"):
        inputs = assembly.inputs_of(assembly.channels(cfg).describe())
        network = assembly.network(model, num_channels=head.num_channels, inputs=inputs)
    loss = assembly.make(cfg.loss, _partial_=True)(transform=assembly.make(cfg.transform)).to("meta")
    found = size.summarise(
        network,
        **_sizes(cfg),
        loss=lambda output, target, mask: loss(head.prediction(output), target, mask),
        optimizer_slots=cfg.optimizer_slots,
        device=device,
    )
    return found, device


def _sizes(cfg: DictConfig) -> dict[str, int]:
    absent = [name for name in SIZES if cfg[name] is None]
    if absent:
        raise ValueError(
            f"data.crop=null trains on whole frames, whose size only the archive knows: "
            f"give {' '.join(f'{name}=…' for name in absent)}"
        )
    return {name: cfg[name] for name in SIZES}


def layer_table(summary: "NetworkSummary") -> Table:
    """Return a table with one row per layer."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer", no_wrap=True)
    table.add_column("class", no_wrap=True)
    table.add_column("output", no_wrap=True)
    for header in ("parameters", "GFLOP", "kept MiB"):
        table.add_column(header, justify="right", no_wrap=True)
    for layer in summary.layers:
        table.add_row(*_cells(layer))
    return table


def _cells(layer: "LayerSummary") -> tuple[str, ...]:
    return (
        layer.name,
        layer.kind,
        "×".join(map(str, layer.output_shape)),
        f"{layer.parameters:,}",
        f"{layer.flops / 1e9:,.2f}",
        mebibytes(layer.kept_bytes),
    )


def totals(summary: "NetworkSummary", device: str) -> Group:
    """Return the sizes that the summary is for, and the totals."""
    s = summary
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    table.add_row("parameters", f"{s.parameters:,}", "")
    table.add_row(
        "forward pass", f"{s.forward_flops / 1e9:,.1f} GFLOP", "a multiplication and an addition count as two"
    )
    table.add_row("training step", f"{s.training_step_flops / 1e9:,.1f} GFLOP", "forward and backward")
    for name, nbytes, remark in (
        ("memory: parameters", s.parameter_bytes, ""),
        ("  gradients", s.gradient_bytes, ""),
        ("  optimiser", s.optimizer_bytes, ""),
        ("  batch", s.batch_bytes, "input, target and mask"),
        ("  activations", s.activation_bytes, "kept from the forward to the backward pass"),
        ("  training step", s.training_peak_bytes, f"peak, on {device}"),
        ("  forecast", s.forecast_peak_bytes, "peak of a forward pass without gradients"),
    ):
        table.add_row(name, f"{mebibytes(nbytes)} MiB", remark)
    sizes = (
        f"float32, batch of {s.batch_size}, {s.input_steps} → {s.lead_steps} steps of {s.height}×{s.width} pixels"
    )
    return Group(sizes, "", table)


def mebibytes(nbytes: int) -> str:
    """Format MiB with one decimal."""
    return f"{nbytes / 2**20:,.1f}"
