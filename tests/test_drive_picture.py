"""The pictures of drives: everything that happened is on them, to scale, in words that cover nothing."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.patches import Circle
from matplotlib.text import Text

from mvla_daemon.core.messages import Velocity
from mvla_daemon.errors import DaemonError, ExitCode
from mvla_daemon.sim.drive import Drive
from mvla_daemon.sim.drive_picture import draw_drive, figure_of, headline
from mvla_daemon.sim.drives_picture import draw_drives, figure_of_all
from mvla_daemon.sim.expert import expert
from mvla_daemon.sim.layout import make_room
from mvla_daemon.sim.robot import StopTaken
from mvla_daemon.sim.room import Box, Cup, Light, Pose, Room, Side
from mvla_daemon.sim.world import Outcome, TrackPoint, World

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

MS = 1_000_000
BROWN, BLUE, RED = (60.0, 110.0, 170.0), (160.0, 110.0, 80.0), (40.0, 40.0, 200.0)
GRAY = np.full((480, 640, 3), 90, np.uint8)
TOLD = "go to the cup, pass the box on its left"

ROOM = Room(
    seed=0,
    west_m=0.0,
    east_m=4.5,
    south_m=-2.0,
    north_m=2.0,
    wall_height_m=2.0,
    wall_color=(200.0, 200.0, 200.0),
    floor_color=(120.0, 120.0, 120.0),
    texture_seed=1,
    start=Pose(0.6, 0.0, 0.0),
    cup=Cup(3.6, 0.0, 0.09, 0.22, RED),
    boxes=(Box(2.0, 0.0, 0.0, 0.4, 0.2, 0.2, BROWN), Box(1.0, 1.4, math.pi / 4, 0.4, 0.2, 0.2, BLUE)),
    light=Light(1.0, (1.0, 1.0, 1.0), 2.0, 0.0, 0.3),
)
BEGAN_NS = 7_000 * MS
LENGTH = 490
"""Points of the track: 9.8 s."""


def along_an_arc(share: float) -> Pose:
    return Pose(0.6 + 2.5 * share, 0.7 * math.sin(math.pi * share), 0.5 - share)


def arc() -> list[TrackPoint]:
    return [
        TrackPoint(BEGAN_NS + i * 20 * MS, along_an_arc(i / LENGTH), 0.3 * math.sin(math.pi * i / LENGTH))
        for i in range(1, LENGTH + 1)
    ]


ARC = Drive(ROOM, Side.LEFT, TOLD, Outcome.REACHED, Side.LEFT, arc(), (), ((1.5, GRAY), (5.5, GRAY)))
STOPS = (
    StopTaken(BEGAN_NS + 4_000 * MS, along_an_arc(4.0 / 9.8), "deadline_missed"),
    StopTaken(BEGAN_NS + 7_040 * MS, along_an_arc(7.04 / 9.8), "frame_stale"),
)


@pytest.fixture(scope="module")
def figure() -> Figure:
    return figure_of(ARC)


def drive_by_expert(seed: int, side: Side) -> Drive:
    room = make_room(seed)
    world = World(room, side, seed)
    while world.outcome is Outcome.RUNNING:
        wheels: Velocity = expert(room, world.pose, side)
        world.advance(world.next_step_ns + 15 * MS, wheels)
    stops = [StopTaken(world.track[150].at_ns, world.track[150].pose, "deadline_missed")]
    return Drive(room, side, TOLD, world.outcome, world.passed, world.track, stops, ((1.0, GRAY), (5.0, GRAY)))


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def robots(figure: Figure) -> list[Circle]:
    return [patch for patch in figure.axes[0].patches if isinstance(patch, Circle) and patch.radius == 0.18]


def marks(figure: Figure, marker: str) -> list[Line2D]:
    return [line for line in figure.axes[0].lines if line.get_marker() == marker]


def test_the_file_is_a_png_of_1600_pixels_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "drive.png"
    path.write_bytes(b"an older one")
    draw_drive(ARC, path)
    png = path.read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert png.endswith(b"IEND\xaeB`\x82")
    assert int.from_bytes(png[16:20], "big") == 1600
    assert 900 < int.from_bytes(png[20:24], "big") < 1300
    assert 40_000 < len(png) < 1_000_000
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_drive_gives_the_same_picture(tmp_path: Path) -> None:
    for name in ("one.png", "other.png"):
        draw_drive(replace(ARC, stops=STOPS), tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "other.png").read_bytes()


def test_everything_is_named(figure: Figure) -> None:
    shown = texts(figure)
    assert "Reached the cup in 9.8 s, passing the box on its left, as told" in shown
    assert "“go to the cup, pass the box on its left”" in shown
    assert {"start", "end, 9.8 s", "box", "other box", "cup", "goal: within 0.5 m", "1 m", "speed (m/s)"} <= set(shown)
    assert {"the camera at 1.5 s", "the camera at 5.5 s"} <= set(shown)
    assert shown.count("1") == shown.count("2") == 2, "each on the way and beside its picture"


@pytest.mark.parametrize(
    ("side", "passed", "outcome", "says"),
    [
        (Side.RIGHT, Side.RIGHT, Outcome.REACHED, "Reached the cup in 9.8 s, passing the box on its right, as told"),
        (None, Side.RIGHT, Outcome.REACHED, "Reached the cup in 9.8 s, passing the box on its right"),
        (Side.LEFT, None, Outcome.REACHED, "Reached the cup in 9.8 s"),
        (Side.LEFT, None, Outcome.TOUCHED_BOX, "Touched the box after 9.8 s"),
        (Side.LEFT, Side.LEFT, Outcome.TOUCHED_OTHER_BOX, "Touched the other box after 9.8 s"),
        (Side.LEFT, Side.LEFT, Outcome.TOUCHED_CUP, "Touched the cup after 9.8 s"),
        (Side.LEFT, None, Outcome.TOUCHED_WALL, "Touched the wall after 9.8 s"),
        (Side.LEFT, Side.RIGHT, Outcome.WRONG_SIDE, "Passed the box on its right, told to pass on its left"),
        (Side.LEFT, None, Outcome.TIMEOUT, "Did not get to the cup within 10 s"),
        (Side.LEFT, None, Outcome.RUNNING, "Still driving after 9.8 s"),
    ],
)
def test_the_headline_says_how_it_ended(side: Side | None, passed: Side | None, outcome: Outcome, says: str) -> None:
    assert headline(replace(ARC, side=side, passed=passed, outcome=outcome)) == says


def test_where_it_touched_something_is_marked_in_another_color(figure: Figure) -> None:
    touched = figure_of(replace(ARC, outcome=Outcome.TOUCHED_BOX, insets=()))
    assert {"Touched the box after 9.8 s", "touched, 9.8 s"} <= set(texts(touched))
    assert robots(touched)[-1].get_edgecolor() != robots(figure)[-1].get_edgecolor()


def test_a_robot_that_never_moved_is_drawn_at_its_start() -> None:
    still = figure_of(replace(ARC, outcome=Outcome.RUNNING, passed=None, track=(), insets=((0.0, GRAY),)))
    assert "Has not moved" in texts(still)
    assert [robot.center for robot in robots(still)] == [pytest.approx((0.6, 0.0))]


def test_stops_are_marked_where_and_when_they_happened(figure: Figure) -> None:
    stopped = figure_of(replace(ARC, stops=STOPS))
    assert {"STOP deadline_missed, 4.0 s", "STOP frame_stale, 7.0 s"} <= set(texts(stopped))
    assert "Reached the cup in 9.8 s with 2 stops, passing the box on its left, as told" in texts(stopped)
    places = [(line.get_xdata()[0], line.get_ydata()[0]) for line in marks(stopped, "8")]
    assert places == [(stop.pose.x_m, stop.pose.y_m) for stop in STOPS]
    assert not marks(figure, "8")


def test_the_way_is_where_the_robot_was_and_shows_its_speed(figure: Figure) -> None:
    (way,) = (one for one in figure.axes[0].collections if isinstance(one, LineCollection))
    ends = np.array([piece[-1] for piece in way.get_segments()])
    assert ends == pytest.approx(np.array([(point.pose.x_m, point.pose.y_m) for point in ARC.track]))
    assert np.asarray(way.get_array()) == pytest.approx(np.array([point.speed_mps for point in ARC.track]))
    assert (way.norm.vmin, way.norm.vmax) == (0.0, 0.5)
    faster = [replace(point, speed_mps=0.8) for point in ARC.track]
    (way,) = (one for one in figure_of(replace(ARC, track=faster)).axes[0].collections)
    assert way.norm.vmax == 0.8


def test_the_goal_is_dashed_half_a_metre_round_the_cup(figure: Figure) -> None:
    circles = [patch for patch in figure.axes[0].patches if isinstance(patch, Circle) and patch.radius == 0.5]
    assert [circle.center for circle in circles] == [(3.6, 0.0)]
    assert circles[0].get_linestyle() not in {"-", "solid"}


def test_the_robot_is_drawn_about_every_two_seconds(figure: Figure) -> None:
    drawn = sorted(tuple(robot.center) for robot in robots(figure))
    expected = [along_an_arc(share) for share in (0, 2 / 9.8, 4 / 9.8, 6 / 9.8, 8 / 9.8, 1)]
    assert np.array(drawn) == pytest.approx(np.array([(pose.x_m, pose.y_m) for pose in expected]))


@pytest.mark.parametrize(("insets", "north_m"), [(0, 2.0), (0, 0.5), (1, 2.0), (2, 1.0), (3, 2.0)])
def test_map_and_camera_pictures_are_to_scale_and_beside_each_other(insets: int, north_m: float) -> None:
    room = replace(ROOM, north_m=north_m)
    figure = figure_of(replace(ARC, room=room, insets=[(float(i), GRAY) for i in range(insets)]))
    places = [axes.get_position() for axes in figure.axes]
    (left, bottom), (right, top) = figure.axes[0].transData.transform([(0, 0), (1, 1)])
    assert right - left == pytest.approx(top - bottom)
    assert not any(one.overlaps(other) for one, other in combinations(places, 2))
    for place in places[1 : 1 + insets]:
        assert place.width * figure.bbox.width == pytest.approx(place.height * figure.bbox.height * 4 / 3)
    assert all(0 <= place.x0 < place.x1 <= 1 and 0 <= place.y0 < place.y1 <= 1 for place in places)


def test_a_camera_picture_keeps_its_colors() -> None:
    bgr = np.zeros((480, 640, 3), np.uint8)
    bgr[..., 2] = 250
    shown = figure_of(replace(ARC, insets=((1.0, bgr),))).axes[1].images[0].get_array()
    assert shown is not None
    assert shown[0, 0].tolist() == [250, 0, 0]


@pytest.mark.parametrize("seed", range(3))
def test_words_cover_neither_each_other_nor_the_robot_and_stay_in_the_room(seed: int) -> None:
    drive = drive_by_expert(seed, (Side.LEFT, Side.RIGHT)[seed % 2])
    figure = figure_of(drive)
    draw_axes = figure.axes[0]
    extents = [text.get_window_extent() for text in draw_axes.texts]
    assert len(extents) >= 8
    assert not any(one.overlaps(other) for one, other in combinations(extents, 2))
    floor = draw_axes.get_window_extent()
    assert all(floor.x0 < one.x0 and one.x1 < floor.x1 and floor.y0 < one.y0 and one.y1 < floor.y1 for one in extents)
    for pose in (drive.room.start, drive.track[-1].pose):
        at = draw_axes.transData.transform((pose.x_m, pose.y_m))
        assert not any(one.contains(*at) for one in extents)


@pytest.mark.parametrize("title", ["costs $5 and $6_2", "two\nlines", "keep to the left of the box, " * 12])
def test_any_instruction_stands_on_one_line_as_it_is(title: str) -> None:
    figure = figure_of(replace(ARC, title=title))
    (line,) = (text for text in figure.texts if text.get_text().startswith("“"))
    assert line.get_text() == f"“{' '.join(title.split())}”"
    assert line.get_window_extent().x1 <= figure.bbox.x1
    assert not line.get_parse_math()


def turned(room: Room, by_rad: float) -> Room:
    """All of a room that `figure_of_all` shows, turned about (0, 0)."""

    def place(x_m: float, y_m: float) -> tuple[float, float]:
        cos, sin = math.cos(by_rad), math.sin(by_rad)
        return x_m * cos - y_m * sin, x_m * sin + y_m * cos

    (box_x_m, box_y_m), (cup_x_m, cup_y_m) = place(2.0, 0.2), place(3.6, 0.0)
    box = replace(room.boxes[0], x_m=box_x_m, y_m=box_y_m, yaw_rad=by_rad)
    start = Pose(*place(0.6, 0.0), by_rad)
    return replace(room, start=start, cup=replace(room.cup, x_m=cup_x_m, y_m=cup_y_m), boxes=(box,))


def ways(figure: Figure) -> list[np.ndarray]:
    return [np.array(way) for lines in figure.axes[0].collections for way in lines.get_segments()]  # type: ignore[attr-defined]


def test_many_ways_share_the_box_and_the_direction_to_the_cup() -> None:
    room = turned(ROOM, 0.6)
    track = [TrackPoint(i * 20 * MS, Pose(i * math.cos(0.6), i * math.sin(0.6), 0.6), 0.3) for i in range(1, 4)]
    (way,) = ways(figure_of_all([Drive(room, None, "", Outcome.RUNNING, None, track, (), ())], "one"))
    assert way == pytest.approx(np.array([(-1.4, -0.2), (-1.0, -0.2), (0.0, -0.2), (1.0, -0.2)]))


def test_many_drives_are_counted_by_how_they_ended(tmp_path: Path) -> None:
    right = replace(ARC, side=Side.RIGHT, passed=Side.RIGHT)
    touched = replace(ARC, outcome=Outcome.TOUCHED_BOX, stops=STOPS)
    wrong = replace(ARC, outcome=Outcome.WRONG_SIDE, passed=Side.RIGHT)
    late = replace(ARC, outcome=Outcome.TIMEOUT, passed=None)
    drives = [ARC, ARC, right, touched, wrong, late, replace(late, track=(), outcome=Outcome.RUNNING)]
    figure = figure_of_all(drives, "seven drives")
    shown = texts(figure)
    assert {"seven drives", "3 of 7 drives reached the cup", "start", "box", "cup"} <= set(shown)
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "reached the cup, left of the box: 2",
        "reached the cup, right of the box: 1",
        "touched the box: 1",
        "wrong side of the box: 1",
        "too slow: 1",
        "still driving: 1",
        "stopped: 2",
    ]
    assert len(ways(figure)) == 7
    draw_drives(drives, tmp_path / "all.png", "seven drives")
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")


def test_every_ending_has_its_own_color_or_mark() -> None:
    drives = [replace(ARC, outcome=outcome, side=None) for outcome in Outcome]
    drives += [replace(ARC, passed=Side.RIGHT), replace(ARC, passed=None)]
    legend = figure_of_all(drives, "all").axes[0].get_legend()
    assert legend is not None
    looks = [(handle.get_color(), handle.get_marker()) for handle in legend.legend_handles]  # type: ignore[union-attr]
    assert len(set(looks)) == len(looks) == 10


def test_the_whole_legend_is_below_the_map_and_in_the_picture() -> None:
    drives = [replace(ARC, outcome=outcome, side=None, stops=STOPS) for outcome in Outcome]
    figure = figure_of_all(drives, "all")
    figure.draw_without_rendering()
    legend = figure.axes[0].get_legend()
    assert legend is not None
    place = legend.get_window_extent()
    assert place.y0 >= 0
    assert place.x1 <= figure.bbox.x1
    assert place.y1 <= figure.axes[0].get_window_extent().y0
    scale = figure.axes[1].get_tightbbox()
    assert scale is not None
    assert not place.overlaps(scale)


@pytest.mark.parametrize("name", ["file/drive.png", "file/in/drive.png", "folder"])
def test_a_file_that_cannot_be_written_is_told_in_a_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(DaemonError, match=re.escape(f"{tmp_path / name} cannot be written")) as raised:
        draw_drive(ARC, tmp_path / name)
    assert raised.value.exit_code is ExitCode.NO_PERMISSION
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_the_folder_of_a_picture_is_made(tmp_path: Path) -> None:
    draw_drive(ARC, tmp_path / "build" / "today" / "drive.png")
    assert (tmp_path / "build" / "today" / "drive.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(DaemonError, match=r"matplotlib.*pip install 'mvla-daemon\[sim\]'") as raised:
        draw_drive(ARC, tmp_path / "drive.png")
    assert raised.value.exit_code is ExitCode.UNAVAILABLE
    assert list(tmp_path.iterdir()) == []


def test_matplotlib_is_loaded_by_the_first_picture_and_pyplot_never(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from mvla_daemon.sim.drive import Drive\n"
        "from mvla_daemon.sim.drive_picture import draw_drive\n"
        "from mvla_daemon.sim.layout import make_room; from mvla_daemon.sim.world import Outcome\n"
        "print('matplotlib' in sys.modules)\n"
        "drive = Drive(make_room(1), None, '', Outcome.RUNNING, None, (), (), ())\n"
        "draw_drive(drive, pathlib.Path(sys.argv[1]))\n"
        "print('matplotlib.figure' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "drive.png")]
    process = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert process.stdout.split() == ["False", "True", "False"]
