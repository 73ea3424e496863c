"""The page of an evaluation, one HTML file: tables, curves, diagrams, and events on maps.

`scores` is the Dataset of an evaluation, `scores.nc`. A section appears if its data exist.
"""

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import xarray as xr

from raincast.evaluation.report import event_maps, probabilities, sections
from raincast.evaluation.report.event_maps import EventMaps
from raincast.evaluation.report.tables import lead_minutes
from raincast.evaluation.verdict import sentence
from raincast.plotting import page

STYLE = (
    """
nav { font-size: .9em; margin: .6em 0 0; } nav a { margin-right: 1em; } a { color: #005a8c; }
.scores td, .scores th { padding: .2em .6em; text-align: right; vertical-align: top;
  white-space: nowrap; }
.scores td:first-child, .scores th:first-child { text-align: left; padding-left: 0; color: inherit; }
.scores tr + tr > * { border-top: 1px solid #e3e8ec; } .scores small { color: #5a6772; display: block; }
.scores .best { font-weight: 700; } .scores small { font-weight: 400; }
details { margin: .5em 0; } summary { cursor: pointer; } p { max-width: 75ch; }
h3 { font-size: 1em; margin: 1.2em 0 .2em; } .note { color: #5a6772; font-size: .9em; }
"""
    + event_maps.STYLE
)

MAP_NOTE = (
    '<p class="note">The events at which the first forecaster did best, in the middle and worst, of those with at '
    "least a tenth of the rain of the mean event. Move the slider, or focus it and press the arrow keys.</p>"
)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The content of the page.

    `threshold` (mm/h) is that of single-threshold figures. `by_event` and `by_hour` hold a few scores and
    `num_windows` by `event` or `hour`; `facts` are rows by heading; `config` is the resolved config of the
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
    """Write report.html. It opens from disk, needs no network, and has everything in one file."""
    made = list(_sections(evaluation))
    links = "".join(f'<a href="#s{k}">{html.escape(name)}</a>' for k, (name, _) in enumerate(made))
    parts = [f'<p class="verdict">{html.escape(sentence(evaluation.scores))}</p><nav>{links}</nav>']
    parts += [
        f'<section id="s{k}"><h2>{html.escape(name)}</h2>{content}</section>'
        for k, (name, content) in enumerate(made)
    ]
    script = event_maps.SCRIPT if evaluation.maps else ""
    return page.write_page(path, title=title, heading=title, parts=parts, style=STYLE, script=script)


def _sections(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    """Headings and the HTML below them, in the order of reading."""
    scores, threshold = evaluation.scores, evaluation.threshold
    made = {
        "Scores": sections.table(scores, threshold),
        "Against lead time": sections.curves(scores),
        "Events on maps": _maps(evaluation),
        "Performance": sections.performance(scores),
        "Probabilities": probabilities.probabilities(scores),
        "Ensembles": probabilities.ensembles(scores),
        "Scales": sections.scales(scores, threshold),
        "Neighbourhoods, amounts, onsets": sections.users(scores, threshold),
        "By event": sections.by(evaluation.by_event, "event", threshold),
        "By hour of day": sections.by(evaluation.by_hour, "hour", threshold),
        "Training and data": _facts(evaluation),
    }
    yield from ((name, content) for name, content in made.items() if content)


def _maps(evaluation: Evaluation) -> str:
    if not evaluation.maps:
        return ""
    return MAP_NOTE + event_maps.legend() + "".join(maps.to_html() for maps in evaluation.maps)


def _facts(evaluation: Evaluation) -> str:
    minutes = lead_minutes(evaluation.scores)
    rows = {"lead times": f"{minutes[0]:g} to {minutes[-1]:g} min, {minutes.size} of them"}
    parts = [
        f"<h3>{html.escape(title)}</h3>{page.table(list(facts))}" for title, facts in evaluation.facts.items()
    ]
    parts.append(f"<h3>Scoring</h3>{page.table(list(rows.items()))}")
    if evaluation.config:
        parts.append(
            f"<details><summary>full config</summary><pre>{html.escape(evaluation.config)}</pre></details>"
        )
    return "".join(parts)
