"""Records what the simulated robot's camera sees while it drives to the cup, as a clip for `scripts/measure.py`.

python scripts/record_clip.py --out build/room.avi [--seed 1]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from mvla_daemon.core.messages import SECOND
from mvla_daemon.sim.expert import expert
from mvla_daemon.sim.layout import make_room
from mvla_daemon.sim.picture import Painter
from mvla_daemon.sim.room import CAMERA_HEIGHT_PX, CAMERA_WIDTH_PX, Side
from mvla_daemon.sim.world import Outcome, World

FPS = 50
QUALITY = 60


def record(seed: int, path: Path) -> int:
    """Write the expert's drive through the room of this seed as motion JPEG; how many pictures it has."""
    room = make_room(seed)
    world, painter = World(room, Side.LEFT, seed), Painter(room)
    pixels = np.zeros((CAMERA_HEIGHT_PX, CAMERA_WIDTH_PX, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"unfinished-{path.name}")
    clip = cv2.VideoWriter(str(unfinished), cv2.VideoWriter.fourcc(*"MJPG"), FPS, (CAMERA_WIDTH_PX, CAMERA_HEIGHT_PX))
    clip.set(cv2.VIDEOWRITER_PROP_QUALITY, QUALITY)
    number = 0
    while world.outcome is Outcome.RUNNING:
        painter.paint(world.pose, number, pixels)
        clip.write(pixels)
        number += 1
        world.advance(number * SECOND // FPS, expert(room, world.pose, world.side))
    clip.release()
    unfinished.replace(path)
    return number


def main() -> None:
    """Record what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print(f"{options.out}: {record(options.seed, options.out)} pictures of 640x480, {FPS} a second")


if __name__ == "__main__":
    main()
