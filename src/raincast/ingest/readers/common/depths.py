"""What an archive says of rates that come from depths over another time than its step."""

from typing import Any


def depth_attrs(minutes: float | None, step_minutes: float) -> dict[str, Any]:
    """What an accumulation over another time than the step says of itself: MeteoSwiss' hours come every 10 min."""
    if minutes is None or minutes == step_minutes:
        return {}
    attrs: dict[str, Any] = {"accumulation_minutes": minutes}
    if step_minutes < minutes:
        attrs["comment"] = f"running means: each rate is that of {minutes:g} min, not of the step"
    return attrs
