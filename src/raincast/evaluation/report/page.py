"""The page of an evaluation, one HTML file: tables, curves, diagrams, and events on maps.

`scores` is the Dataset of an evaluation, `scores.nc`. A section appears if its data exist.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import xarray as xr

from raincast.evaluation.report import event_maps, probabilities, sections
from raincast.evaluation.report.event_maps import EventMaps
from raincast.evaluation.report.tables import lead_minutes
from raincast.evaluation.verdict import sentence
from raincast.plotting import page

MAP_NOTE = (
    "The events at which the first forecaster did best, in the middle and worst, of those with at least a tenth "
    "of the rain of the mean event. Move the slider, or focus it and press the arrow keys."
)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The content of the page.

    `threshold` (mm/h) is that of single-threshold figures. `by_event` and `by_hour` hold a few scores and
    `num_windows` by `event` or `hour`. `facts` are rows by heading; `config` is the resolved config of the
    training.
    """

    scores: xr.Dataset
    threshold: float
    facts: Mapping[str, Sequence[tuple[str, str]]]
    by_event: xr.Dataset | None = None
    by_hour: xr.Dataset | None = None
    config: str = ""
    maps: Sequence[EventMaps] = field(default_factory=tuple)


def write_report(evaluation: Evaluation, path: Path, *, title: str) -> Path:
    """Write report.html: one file that opens from disk and needs no network, with the verdict first."""
    extra = {"style": "event_maps.css", "script": "event_maps.js"} if evaluation.maps else {}
    return page.write_page(
        path, title=title, lead=sentence(evaluation.scores), sections=_sections(evaluation), **extra
    )


def _sections(evaluation: Evaluation) -> Iterator[page.Section]:
    """Yield the sections in reading order."""
    scores, threshold = evaluation.scores, evaluation.threshold
    made = {
        "Scores": sections.table(scores, threshold),
        "Events on maps": _maps(evaluation),
        "Against lead time": sections.curves(scores),
        "Performance": sections.performance(scores),
        "Probabilities": probabilities.probabilities(scores),
        "Ensembles": probabilities.ensembles(scores),
        "Scales": sections.scales(scores, threshold),
        "Neighbourhoods, amounts, onsets": sections.users(scores, threshold),
        "By event": sections.by(evaluation.by_event, "event", threshold),
        "By hour of day": sections.by(evaluation.by_hour, "hour", threshold),
        "Training and data": _facts(evaluation),
    }
    yield from (page.Section(name, blocks) for name, blocks in made.items() if blocks)


def _maps(evaluation: Evaluation) -> list[page.Block]:
    if not evaluation.maps:
        return []
    maps = [maps.block() for maps in evaluation.maps]
    return [page.Text(MAP_NOTE, note=True), event_maps.legend(), *maps]


def _facts(evaluation: Evaluation) -> list[page.Block]:
    minutes = lead_minutes(evaluation.scores)
    parts: list[page.Block] = []
    for title, facts in evaluation.facts.items():
        parts += [page.Heading(title), page.Facts(facts)]
    leads = f"{minutes[0]:g} to {minutes[-1]:g} min, {minutes.size} of them"
    parts += [page.Heading("Scoring"), page.Facts([("lead times", leads)])]
    if evaluation.config:
        parts.append(
            page.Folded("the config that the network was trained with", [page.Command(evaluation.config)])
        )
    return parts
