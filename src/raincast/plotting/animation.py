"""Animations of past radar frames and the forecast, as a GIF or an MP4.

Frames are composed of palette indices, without matplotlib. That is faster than drawing figures, and the GIF needs
no second quantisation, so each colour is exactly one rain class.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.colors import to_rgb
from PIL import Image, ImageDraw, ImageFont

from raincast import schema
from raincast.plotting import rain_image
from raincast.plotting.map_lines import Graticule, coast_pixels
from raincast.plotting.rain_image import DRY_CLASS, MISSING_CLASS, RAIN_BOUNDARIES, RAIN_COLOURS, MapView, Rain
from raincast.schema import Grid
from raincast.system.files import atomic

Indices = npt.NDArray[np.uint8]

# the palette: dry, the rain classes, missing, then these
_HATCH, _LINE, _COAST, _GREY = MISSING_CLASS + 1, MISSING_CLASS + 2, MISSING_CLASS + 3, MISSING_CLASS + 4
_NUM_GREYS = 16  # enough for smooth letters
_HEADER, _MARGIN, _BAR_WIDTH, _GAP, _FOOTER = 46, 8, 74, 10, 42
_MIN_PANEL, _MIN_HEIGHT = 250, 230  # minimum size for the text above and the numbers of the colour bar
_FRAME_MS = 250
_REST_REPEATS, _LAST_REPEATS = 3, 6  # how long the animation stops at the init time, and at the end
_SMALLEST_MAP = 100  # in pixels; below it a coast would hide the rain
_SCALES_KM = (1000, 500, 200, 100, 50, 20, 10, 5, 2, 1)


def forecast_animation(
    observed_input: Rain | None,
    forecast: Rain,
    *,
    grid: Grid,
    init_time: np.datetime64,
    step_minutes: float,
    path: str | Path,
    observed: Rain | None = None,
    max_pixels: int = 640,
    time_zone: str | None = None,
    coastlines: bool = True,
    stills: Path | None = None,
    credit: str = "",
) -> Path:
    """Animate the past hour and the forecast, next to `observed` if given, as a looping GIF or an .mp4.

    Return the path. All are (frame, y, x) in mm/h with NaN for missing. The last frame of `observed_input` is
    valid at `init_time`, the first of `forecast` and `observed` one step later; `observed` may be shorter. The
    longer side of a map has at most `max_pixels` pixels; grid pixels that share one are averaged. Valid times are
    also given in `time_zone` (Europe/Amsterdam). Each lead time becomes a PNG in the folder `stills`, named after
    it. The maps end where nothing was observed. `credit` names the data provider.
    """
    given = {"observed_input": observed_input, "forecast": forecast, "observed": observed}
    rows = {name: rain for name, rain in given.items() if rain is not None}
    rain_image.check_frames(rows, grid)
    rows, grid = rain_image.cropped(rows, grid)
    forecast, observed = rows["forecast"], rows.get("observed")
    past = rows.get("observed_input", np.empty((0, *grid.shape), np.float32))
    canvas = _Canvas(
        MapView.of(grid),
        grid.shape,
        max_pixels,
        num_panels=1 if observed is None else 2,
        coastlines=coastlines,
        note=" · ".join(filter(None, (f"init time {rain_image.utc_text(init_time)}", credit))),
    )
    frames = []
    for number in range(1 - len(past), len(forecast) + 1):
        valid = rain_image.valid_text(init_time + number * schema.step_timedelta(step_minutes), time_zone)
        now = _panels_of(number, past, forecast, observed, step_minutes)
        frames.append(canvas.frame(now, valid))
    if stills is not None:
        _save_stills(frames[len(past) :], stills, step_minutes)
    repeats = [1] * len(frames)
    repeats[-1] = _LAST_REPEATS
    if len(past):
        repeats[len(past) - 1] = _REST_REPEATS
    if Path(path).suffix == ".mp4":
        return _save_mp4(frames, Path(path), repeats)
    return _save_gif(frames, Path(path), repeats)


def _panels_of(
    number: int, past: Rain, forecast: Rain, observed: Rain | None, step_minutes: float
) -> dict[str, Rain]:
    """Return the maps to show `number` steps after init_time, by label."""
    if number <= 0:
        frame = past[number - 1]
        return {"observed": frame} if observed is None else {"observed": frame, "observed ": frame}
    now = {f"forecast +{number * step_minutes:g} min": forecast[number - 1]}
    if observed is None:
        return now
    came = number <= len(observed)
    label = "observed" if came else "not observed yet"
    return {label: observed[number - 1] if came else np.full_like(forecast[0], np.nan)} | now


class _Canvas:
    """Everything that does not change between frames: sizes, hatching, graticule, colour bar."""

    def __init__(
        self,
        view: MapView,
        shape: tuple[int, int],
        max_pixels: int,
        *,
        num_panels: int,
        coastlines: bool = True,
        note: str = "",
    ) -> None:
        if max_pixels < 1:
            raise ValueError(f"max_pixels={max_pixels} leaves no picture. Use 100 to 1000.")
        self.view = view
        # small grids are enlarged by a whole number, so that pixels look alike
        longest = max(shape)
        self.map_shape = view.fit(max_pixels if longest >= max_pixels else max_pixels // longest * longest)
        self.panel_width = max(self.map_shape[1], _MIN_PANEL)
        self.num_panels = num_panels
        self.font = _font(13)
        self.bold = _font(14, bold=True)
        height, width = self.map_shape
        self.bar_left = _MARGIN + num_panels * (self.panel_width + _GAP)
        self.missing = _hatched(height, width)
        self.lines = rain_image.graticule_pixels(view, height, width)
        drawn = coastlines and min(self.map_shape) >= _SMALLEST_MAP
        self.coast = coast_pixels(view, height, width) if drawn else np.zeros((height, width), np.bool_)
        self.labels, self.halo = self._labels()
        self.note = note
        self.background = self._background()

    def frame(self, panels: Mapping[str, Rain], valid: str) -> Indices:
        """Compose one frame as palette indices; `panels` are maps by label, from left to right."""
        frame = self.background.copy()
        words = Image.new("L", (frame.shape[1], _HEADER), 255)
        pen = ImageDraw.Draw(words)
        height, width = self.map_shape
        for k, (label, rain) in enumerate(panels.items()):
            left = _MARGIN + k * (self.panel_width + _GAP)
            pen.text((left, 5), label.strip(), fill=0, font=self.bold)
            pen.text((left, 25), valid, fill=60, font=self.font)
            frame[_HEADER : _HEADER + height, left : left + width] = self._map(rain)
        pen.text((self.bar_left, _HEADER - 21), "mm/h", fill=0, font=self.font)
        frame[:_HEADER] = _greys(words)
        return frame

    def _map(self, rain: Rain) -> Indices:
        shown = rain_image.resample(self.view.north_up(rain), *self.map_shape)
        classes = rain_image.rain_classes(shown)
        # the graticule lies under the rain, so that it never hides a shower
        classes = np.where(self.lines & (classes == DRY_CLASS), np.uint8(_LINE), classes)
        classes = np.where(classes == MISSING_CLASS, np.where(self.lines, _LINE, self.missing), classes)
        classes = np.where(self.coast, _COAST, classes)
        classes = np.where(self.halo, DRY_CLASS, classes)
        return np.where(self.labels, _GREY, classes).astype(np.uint8)

    def _labels(self) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Return masks of the degree labels at the lower and left edges: letters, and a halo around them."""
        height, width = self.map_shape
        letters, halo = (Image.new("1", (width, height)) for _ in range(2))
        if min(height, width) >= _SMALLEST_MAP:
            view, font = self.view, _font(10)
            for label in Graticule.of(view).labels():
                x = (label.x - view.left) / (view.right - view.left) * width
                y = (view.top - label.y) / (view.top - view.bottom) * height
                at, anchor = ((x, height - 3), "ms") if label.at_bottom else ((3, y), "lm")
                ImageDraw.Draw(halo).text(at, label.text, fill=1, font=font, anchor=anchor, stroke_width=2)
                ImageDraw.Draw(letters).text(at, label.text, fill=1, font=font, anchor=anchor)
        return np.asarray(letters, np.bool_), np.asarray(halo, np.bool_)

    def _background(self) -> Indices:
        height, width = self.map_shape
        body = max(height, _MIN_HEIGHT)
        page = Image.new("L", (self.bar_left + _BAR_WIDTH, _HEADER + body + _FOOTER), 255)
        pen = ImageDraw.Draw(page)
        for k in range(self.num_panels):
            left = _MARGIN + k * (self.panel_width + _GAP)
            pen.rectangle((left - 1, _HEADER - 1, left + width, _HEADER + height), outline=120)
        self._draw_scale(pen, top=_HEADER + height + 9)
        pen.text(
            (_MARGIN, _HEADER + body + 22), _fitted(self.note, page.width - 2 * _MARGIN), fill=60, font=_font(11)
        )
        step = min(36, (body - 30) // len(RAIN_COLOURS))
        tops = [_HEADER + step * (len(RAIN_COLOURS) - 1 - k) for k in range(len(RAIN_COLOURS))]
        for boundary, top in zip(RAIN_BOUNDARIES, tops, strict=True):
            pen.text((self.bar_left + 21, top + step), f"{boundary:g}", fill=0, font=self.font, anchor="lm")
        below = tops[0] + step + 12
        pen.text((self.bar_left + 21, below + 8), "missing", fill=0, font=_font(11), anchor="lm")
        frame = _greys(page)
        for k, top in enumerate(tops):
            frame[top : top + step, self.bar_left : self.bar_left + 16] = k + 1
        frame[below : below + 16, self.bar_left : self.bar_left + 16] = _hatched(16, 16)
        return frame

    def _draw_scale(self, pen: ImageDraw.ImageDraw, *, top: int) -> None:
        """Draw a bar of a round number of kilometres, at most a third of the map wide, and label it."""
        kilometres = self.view.width_km
        length = next((km for km in _SCALES_KM if km <= kilometres / 3), _SCALES_KM[-1])
        pixels = round(length / kilometres * self.map_shape[1])
        pen.line((_MARGIN, top, _MARGIN + pixels, top), fill=0, width=2)
        for end in (_MARGIN, _MARGIN + pixels):
            pen.line((end, top - 4, end, top + 4), fill=0)
        pen.text((_MARGIN + pixels + 6, top), f"{length:g} km", fill=0, font=_font(11), anchor="lm")


def _fitted(text: str, width: int) -> str:
    """Return `text`, shortened to fit into `width` pixels."""
    font = _font(11)
    while text and font.getlength(text) > width:
        text = f"{text[:-2]}…"
    return text


def _hatched(height: int, width: int) -> Indices:
    rows, columns = np.indices((height, width))
    return np.where((rows + columns) % 8 == 0, _HATCH, MISSING_CLASS).astype(np.uint8)


def _greys(image: Image.Image) -> Indices:
    return (_GREY + np.asarray(image) // (256 // _NUM_GREYS)).astype(np.uint8)


def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / name, size)


def _palette() -> list[int]:
    colours = (rain_image.DRY_COLOUR, *RAIN_COLOURS, rain_image.MISSING_COLOUR, rain_image.HATCH_COLOUR)
    shades = [to_rgb(colour) for colour in (*colours, rain_image.LINE_COLOUR, rain_image.COAST_COLOUR)]
    shades += [(grey, grey, grey) for grey in np.linspace(0, 1, _NUM_GREYS)]
    return [round(255 * part) for shade in shades for part in shade]


def _image(frame: Indices) -> Image.Image:
    image = Image.fromarray(frame)  # mode L, same bytes: only the meaning of the numbers changes
    image.putpalette(_palette())
    return image


def _save_stills(frames: list[Indices], folder: Path, step_minutes: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames, start=1):
        _image(frame).save(folder / f"{folder.name}_+{number * step_minutes:03g}min.png", format="PNG")


def _save_gif(frames: list[Indices], path: Path, repeats: list[int]) -> Path:
    images = [_image(frame) for frame in frames]
    durations = [_FRAME_MS * times for times in repeats]
    with atomic(path) as partial:
        images[0].save(partial, format="GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
    return path


def check_installed() -> None:
    """Raise ValueError if imageio-ffmpeg is not installed."""
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        raise ValueError(
            'animation=mp4 needs the package imageio-ffmpeg: pip install -e ".[video]", or use animation=gif.'
        )


def _save_mp4(frames: Sequence[Indices], path: Path, repeats: Sequence[int]) -> Path:
    """Write the frames; H.264 needs even sizes, so a row or column of the frame's last colours may be added."""
    check_installed()
    import imageio_ffmpeg

    colours = np.array(_palette(), np.uint8).reshape(-1, 3)
    height, width = frames[0].shape
    odd = ((0, height % 2), (0, width % 2))
    size = (width + width % 2, height + height % 2)
    # few colours, sharp edges: little is lost at this quality; the index comes first, so that browsers start at
    # once
    options = ["-crf", "16", "-preset", "medium", "-tune", "animation", "-movflags", "+faststart", "-f", "mp4"]
    with atomic(path) as partial:
        writer = imageio_ffmpeg.write_frames(
            str(partial), size, fps=1000 / _FRAME_MS, codec="libx264", quality=None, macro_block_size=1,
            ffmpeg_log_level="error", output_params=options,
        )  # fmt: skip
        with closing(writer):
            writer.send(None)
            for frame, times in zip(frames, repeats, strict=True):
                picture = np.ascontiguousarray(colours[np.pad(frame, odd, mode="edge")])
                for _ in range(times):
                    writer.send(picture)
    return path
