"""The picture of one drive for a person: its room seen from above, and beside it what the camera saw.

matplotlib is asked for figures only, never for pyplot: nothing is shown, and nothing stays behind in the process.
"""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from mvla_daemon.errors import DaemonError, ExitCode
from mvla_daemon.sim.drive import Drive
from mvla_daemon.sim.drive_labels import INK, Style
from mvla_daemon.sim.drive_map import BAD, BADGE, FAINT, GHOST_EVERY_S, TOUCHED, WALL_M, Map, fastest_mps
from mvla_daemon.sim.world import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_IN = 10.0
"""Of every picture."""
MARGIN_IN = 0.22
"""Left and right of what is in a picture, and between map and camera pictures."""

_PARTS = ("backends.backend_agg", "cm", "collections", "colors", "figure", "lines", "patches", "patheffects")
_DPI = 160
_HEAD_IN, _FOOT_IN, _CAPTION_IN = 0.86, 0.62, 0.30
_TALLEST_MAP_IN = 6.5
_GOOD = "#00664f"


def draw_drive(drive: Drive, path: Path) -> None:
    """Write the picture of one drive: a PNG, 1600 pixels wide.

    `DaemonError`: UNAVAILABLE without matplotlib, NO_PERMISSION where the file cannot be written.
    """
    write_figure(figure_of(drive), path)


def headline(drive: Drive) -> str:
    """How a drive ended, as a sentence."""
    after = f"{drive.duration_s:.1f} s"
    if drive.outcome is Outcome.REACHED:
        stops = f" with {counted(len(drive.stops), 'stop')}" if drive.stops else ""
        passing = f", passing the box on its {drive.passed.value}" if drive.passed else ""
        told = ", as told" if drive.passed and drive.passed is drive.side else ""
        return f"Reached the cup in {after}{stops}{passing}{told}"
    if drive.outcome is Outcome.WRONG_SIDE:
        passed = f"its {drive.passed.value}" if drive.passed else "the wrong side"
        return f"Passed the box on {passed}{f', told to pass on its {drive.side.value}' if drive.side else ''}"
    if drive.outcome is Outcome.TIMEOUT:
        return f"Did not get to the cup within {drive.duration_s:.0f} s"
    if drive.outcome is Outcome.RUNNING:
        return f"Still driving after {after}" if drive.track else "Has not moved"
    return f"{TOUCHED[drive.outcome].capitalize()} after {after}"


def figure_of(drive: Drive) -> Figure:
    """The picture of one drive: the room to scale, and beside it what the camera saw."""
    mpl, room = load_matplotlib(), drive.room
    wide_m, tall_m = room.east_m - room.west_m + 2 * WALL_M, room.north_m - room.south_m + 2 * WALL_M
    map_in, inset_in = _sizes_in(tall_m / wide_m, len(drive.insets))
    color = BAD if drive.outcome in {*TOUCHED, Outcome.WRONG_SIDE} else INK
    color = _GOOD if drive.outcome is Outcome.REACHED else color
    figure = new_figure(mpl, _FOOT_IN + map_in[1], (headline(drive), color), f"“{drive.title.strip()}”")
    axes = axes_at(figure, MARGIN_IN, _FOOT_IN, *map_in)
    axes.set(xlim=(room.west_m - WALL_M, room.east_m + WALL_M), ylim=(room.south_m - WALL_M, room.north_m + WALL_M))
    Map(mpl, figure, axes, drive).draw()
    for number, (seconds, bgr) in enumerate(drive.insets, start=1):
        bottom_in = _FOOT_IN + map_in[1] - (number - 1) * (inset_in[1] + _CAPTION_IN) - inset_in[1]
        inset = axes_at(figure, WIDTH_IN - MARGIN_IN - inset_in[0], bottom_in, *inset_in)
        inset.imshow(bgr[..., ::-1], aspect="auto")
        below: Style = {"xycoords": "axes points", "va": "center", "fontsize": 10, "color": INK}
        inset.annotate(str(number), (7, -12), ha="center", weight="bold", bbox=BADGE, **{**below, "color": "white"})
        inset.annotate(f"the camera at {seconds:.1f} s", (20, -12), **below)
    _draw_foot(mpl, figure, map_in[0] / wide_m, fastest_mps(drive))
    return figure


def _sizes_in(tall_to_wide: float, insets: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Width and height of the map and of an inset, in inches: a column of two or more is as tall as the map."""
    inside_in = WIDTH_IN - 2 * MARGIN_IN
    if not insets:
        tall_in = min(inside_in * tall_to_wide, _TALLEST_MAP_IN)
        return (tall_in / tall_to_wide, tall_in), (0.0, 0.0)
    rows, inside_in = max(insets, 2), inside_in - MARGIN_IN
    tall_in = rows * (0.75 * inside_in + _CAPTION_IN) / (1 + 0.75 * rows / tall_to_wide)
    wide_in = inside_in - tall_in / tall_to_wide
    return (tall_in / tall_to_wide, tall_in), (wide_in, 0.75 * wide_in)


def _draw_foot(mpl: ModuleType, figure: Figure, in_per_m: float, end_mps: float) -> None:
    """Under the map: how long a metre is, and what the way's colors mean."""
    draw_scale(figure, 0.32, in_per_m)
    bar = axes_at(figure, WIDTH_IN - MARGIN_IN - 2.4, 0.34, 2.3, 0.13)
    norm = mpl.colors.Normalize(0.0, end_mps)
    figure.colorbar(mpl.cm.ScalarMappable(norm, "viridis"), cax=bar, orientation="horizontal")
    bar.set_axis_on()
    bar.tick_params(labelsize=9, labelcolor=INK, color=INK, pad=2)
    bar.annotate("speed (m/s)", (-10, 4), xycoords="axes points", ha="right", va="center", fontsize=10, color=INK)
    words = f"gray circles: the robot every {GHOST_EVERY_S:.0f} s"
    at = ((MARGIN_IN + in_per_m + 0.75) / WIDTH_IN, 0.32 / figure.get_figheight())
    figure.text(*at, words, va="center", fontsize=10, color=FAINT)


def draw_scale(figure: Figure, up_in: float, in_per_m: float) -> None:
    """A line as long as one metre of the map, its middle `up_in` above the bottom, at the left margin."""
    scale = axes_at(figure, MARGIN_IN, up_in - 0.06, in_per_m, 0.12)
    scale.set(xlim=(0, 1), ylim=(0, 1))
    scale.plot([0, 0, 0, 1, 1, 1], [0, 1, 0.5, 0.5, 1, 0], color=INK, lw=1.6, clip_on=False)
    scale.annotate("1 m", (1, 0.5), (6, 0), textcoords="offset points", va="center", fontsize=10, color=INK)


def load_matplotlib() -> ModuleType:
    """The module with the parts that are used; raises DaemonError, UNAVAILABLE, where it cannot be imported."""
    try:
        for part in _PARTS:
            importlib.import_module(f"matplotlib.{part}")
        return importlib.import_module("matplotlib")
    except ImportError as error:
        raise DaemonError(
            f"matplotlib, which draws the pictures, cannot be imported ({error}): pip install 'mvla-daemon[sim]'",
            ExitCode.UNAVAILABLE,
        ) from error


def new_figure(mpl: ModuleType, below_head_in: float, head: tuple[str, str], line: str) -> Figure:
    """An empty figure with its headline and color, and a line under it."""
    figure: Figure = mpl.figure.Figure((WIDTH_IN, below_head_in + _HEAD_IN), dpi=_DPI, facecolor="white")
    renderer = mpl.backends.backend_agg.FigureCanvasAgg(figure).get_renderer()
    for words, color, size, weight, down_in in ((*head, 17, "bold", 0.30), (line, INK, 12.5, "normal", 0.62)):
        at = (MARGIN_IN / WIDTH_IN, 1 - down_in / figure.get_figheight())
        style: Style = {"color": color, "fontsize": size, "weight": weight, "va": "center", "parse_math": False}
        text = figure.text(*at, " ".join(words.split()), **style)
        while text.get_window_extent(renderer).x1 > (WIDTH_IN - MARGIN_IN) * _DPI:
            text.set_fontsize(0.97 * float(text.get_fontsize()))
    return figure


def axes_at(figure: Figure, left_in: float, bottom_in: float, wide_in: float, tall_in: float) -> Axes:
    """Axes without a frame, their left lower corner and size in inches."""
    height_in = figure.get_figheight()
    share = (left_in / WIDTH_IN, bottom_in / height_in, wide_in / WIDTH_IN, tall_in / height_in)
    axes = figure.add_axes(share)
    axes.set_axis_off()
    return axes


def write_figure(figure: Figure, path: Path) -> None:
    """The whole file or none of it: it is written beside its place and moved there. `DaemonError`: NO_PERMISSION.

    A folder that is missing is made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".picture-", dir=path.parent) as folder:
            whole = Path(folder) / path.name
            figure.savefig(whole, format="png")
            whole.replace(path)
    except OSError as error:
        raise DaemonError(
            f"the picture {path} cannot be written ({error.strerror}): name a file in a folder that you may write to",
            ExitCode.NO_PERMISSION,
        ) from error


def counted(number: int, noun: str) -> str:
    """The number and the noun, with an s unless it is one."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
