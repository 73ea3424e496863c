"""Initialisation of a network with another's weights, as far as they fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class WarmStart:
    """The fate of each weight, by name.

    `partly` lists weights with other input channels, and what was copied. `other_shape` and `new` start as without
    a warm start; `unused` exist only in the checkpoint.
    """

    loaded: list[str] = field(default_factory=list)
    partly: list[str] = field(default_factory=list)
    other_shape: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    num_values: int = 0
    num_loaded: int = 0

    def __str__(self) -> str:
        """Return one line per kind; weights that are not loaded are named."""
        share = self.num_loaded / max(1, self.num_values)
        lines = [f"loaded {len(self.loaded)} weights unchanged; {share:.1%} of all {self.num_values} numbers"]
        for names, what in (
            (self.partly, "loaded in part"),
            (self.other_shape, "not loaded, of another shape"),
            (self.new, "not loaded, new in this network"),
            (self.unused, "left in the checkpoint"),
        ):
            if names:
                lines.append(f"{what}: {', '.join(names)}")
        return "\n  ".join(lines)


@torch.no_grad()
def warm_start(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    *,
    old_channels: Sequence[str] = ("rain",),
    channels: Sequence[str] = ("rain",),
) -> WarmStart:
    """Load into `network` those of `weights` (by name, without a prefix) that fit; raises ValueError if none does.

    `old_channels` and `channels` name the input channels of the two networks, in order. The kernel that reads the
    frames keeps the old values of each channel that both have; those of other channels become 0, so that the
    network first gives the same output as the old one.
    """
    found = WarmStart()
    other_channels = list(old_channels) != list(channels)
    own = network.state_dict()
    count = loaded = 0
    for name, value in own.items():
        count += value.numel()
        old = weights.get(name)
        if old is None:
            found.new.append(name)
        elif (
            other_channels
            and not found.partly
            and _reads_frames(network, value, old, len(channels), len(old_channels))
        ):
            found.partly.append(f"{name} ({_by_channel(value, old, channels, old_channels)})")
            loaded += value.numel()
        elif old.shape == value.shape:
            value.copy_(old)
            found.loaded.append(name)
            loaded += value.numel()
        else:
            found.other_shape.append(f"{name} {_size(old)} there, {_size(value)} here")
    found.unused.extend(name for name in weights if name not in own)
    if not found.loaded and not found.partly:
        why = ", ".join(found.other_shape) or "no names match"
        raise ValueError(
            f"No weight of the checkpoint fits this network: {why}. Use the model= and widths with which it was "
            "trained."
        )
    return WarmStart(**{**vars(found), "num_values": count, "num_loaded": loaded})


def _reads_frames(network: nn.Module, value: Tensor, old: Tensor, num: int, old_num: int) -> bool:
    """Return True for the kernel (out, channels · patch², …) over the frames, which comes first."""
    pixels = int(getattr(network, "patch", 1)) ** 2
    if value.ndim < 2 or old.ndim != value.ndim:
        return False
    rest = (value.shape[0], *value.shape[2:]) == (old.shape[0], *old.shape[2:])
    return rest and value.shape[1] == num * pixels and old.shape[1] == old_num * pixels


def _by_channel(value: Tensor, old: Tensor, channels: Sequence[str], old_channels: Sequence[str]) -> str:
    """Copy channel by channel and return a description of what was done."""
    parts = dict(zip(old_channels, old.chunk(len(old_channels), dim=1), strict=True))
    kept, fresh = [], []
    for name, part in zip(channels, value.chunk(len(channels), dim=1), strict=True):
        if name in parts:
            part.copy_(parts[name])
            kept.append(name)
        else:
            part.zero_()
            fresh.append(name)
    told = [f"kept {', '.join(kept) or 'nothing'}"]
    told += [f"0 for {', '.join(fresh)}"] if fresh else []
    dropped = [name for name in old_channels if name not in channels]
    return "; ".join(told + ([f"without {', '.join(dropped)}"] if dropped else []))


def _size(tensor: Tensor) -> str:
    return "×".join(str(size) for size in tensor.shape) or "one number"
