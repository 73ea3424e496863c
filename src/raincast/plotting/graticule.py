"""Meridians and parallels of a map, and the degree labels at its edges."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raincast.plotting.rain_image import MapView, graticule_levels

Degrees = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Label:
    """A label at an edge of the map, placed where the line meets it, in the map's units."""

    text: str
    x: float
    y: float
    at_bottom: bool
    """True for the lower edge (a meridian), False for the left one (a parallel)."""


@dataclass(frozen=True)
class Graticule:
    """Longitudes and latitudes on a coarse mesh of the map, (n, n) from its upper left corner."""

    view: MapView
    lon: Degrees
    lat: Degrees

    @classmethod
    def of(cls, view: MapView, num_points: int = 41) -> "Graticule":
        """Return the graticule of a whole map."""
        return cls(view, *view.lonlat(num_points, num_points))

    @property
    def x(self) -> Degrees:
        """x coordinates of the mesh, in the map's units."""
        return np.linspace(self.view.left, self.view.right, self.lon.shape[1])

    @property
    def y(self) -> Degrees:
        """y coordinates of the mesh, in the map's units, from north to south."""
        return np.linspace(self.view.top, self.view.bottom, self.lon.shape[0])

    def labels(self) -> list[Label]:
        """Return labels of the meridians at the lower edge and of the parallels at the left one."""
        at_bottom = [
            Label(longitude_text(level), place, self.view.bottom, True)
            for level, place in crossings(self.lon[-1], self.x, self.lon)
        ]
        at_left = [
            Label(latitude_text(level), self.view.left, place, False)
            for level, place in crossings(self.lat[:, 0], self.y, self.lat)
        ]
        return at_bottom + at_left


def longitude_text(degrees: float) -> str:
    """Format a longitude, such as 5°E; longitudes beyond the date line are wrapped."""
    west_to_east = (degrees + 180.0) % 360.0 - 180.0
    side = "" if west_to_east in (0.0, -180.0) else "E" if west_to_east > 0 else "W"
    return f"{abs(west_to_east):g}°{side}"


def latitude_text(degrees: float) -> str:
    """Format a latitude, such as 52°N."""
    side = "" if degrees == 0 else "N" if degrees > 0 else "S"
    return f"{abs(degrees):g}°{side}"


def crossings(edge: Degrees, places: Degrees, degrees: Degrees) -> list[tuple[float, float]]:
    """Return where the lines drawn for `degrees` meet an edge: (degrees, place), none within 5 % of its ends."""
    if not np.isfinite(edge).all():
        return []
    order = np.argsort(edge)
    margin = 0.05 * abs(places[-1] - places[0])
    found = []
    for level in graticule_levels(degrees):
        place = float(np.interp(level, edge[order], places[order]))
        # interp returns an end for lines that miss this edge
        if places.min() + margin < place < places.max() - margin:
            found.append((float(level), place))
    return found
