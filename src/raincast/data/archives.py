"""The archives that a datamodule takes its samples from, each with the channels on its own grid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from raincast.archive import Archive
from raincast.data.channels import Site
from raincast.data.channels.declared import BoundChannels, Channels
from raincast.data.source import Source


@dataclass(frozen=True)
class Extra:
    """A further archive to train on; its places are drawn `weight` times as often as by their rain alone.

    `all`: of its windows all train, and not only those that the split gives to train. `channels` says what is
    other about a channel on its grid, {NAME: {path: …}}.
    """

    archive: str
    weight: float = 1.0
    all: bool = False
    channels: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a weight that is none."""
        if not self.weight > 0:
            raise ValueError(f"data.more: weight={self.weight} of {self.archive} must be over 0.")


def open_sources(
    archive: Archive, more: Sequence[Extra], channels: Channels, *, input_steps: int, lead_steps: int
) -> list[Source]:
    """`archive` and the further ones, at its step; ValueError where a step or a channel does not fit."""
    archives = [(archive, {}), *((Archive.open(extra.archive), extra.channels) for extra in more)]
    return [
        Source.at_step(
            found,
            archive.step_minutes,
            input_steps=input_steps,
            lead_steps=lead_steps,
            channels=_bound(channels, found, others),
        )
        for found, others in archives
    ]


def _bound(channels: Channels, archive: Archive, others: Mapping[str, Mapping[str, Any]]) -> BoundChannels | None:
    """The channels on the grid of `archive`, with what is other there; None where the rain says it all."""
    if unknown := [name for name in others if name not in channels.declared]:
        there = ", ".join(channels.declared) or "none"
        raise ValueError(
            f"data.more: channels {', '.join(unknown)} of {archive.path} are not declared; there are {there}."
        )
    if not channels.read_any:
        return None
    declared: dict[str, Any] = {**channels.declared}
    own = {name: replace(channel, **others.get(name, {})) for name, channel in declared.items()}
    return Channels(own).bind(Site.of(archive))
