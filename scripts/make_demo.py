"""Makes what `make run` shows: a clip of a drive along a corridor, and a small network with random weights.

`corridor.avi` (640x480, 50 pictures a second) ends where it begins, so that it can be played in a loop. `random.onnx`
and its manifest `random.toml` are a MobileNet-like network that never was trained: its last layer is scaled on some
of the clip's pictures so that every axis moves, and that is all it knows about corridors.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from demo_corridor import FPS, HEIGHT, LOOP_S, WIDTH, Corridor
from demo_network import IMAGENET_MEAN, IMAGENET_STD, make_network

if TYPE_CHECKING:
    from demo_corridor import Picture

SEED = 20
JPEG_QUALITY = 55
STAMP = "made-by.sha256"
OUTPUTS = ("corridor.avi", "random.onnx", "random.toml")
SCRIPTS = ("make_demo.py", "demo_corridor.py", "demo_network.py")
# (name, value of an output of 1, unit)
AXES = (("linear_x", 0.5, "m/s"), ("linear_y", 0.2, "m/s"), ("angular_z", 0.8, "rad/s"))


def manifest(model_sha256: str) -> str:
    """The manifest that says how to feed `random.onnx` and what its outputs mean."""
    head = f"""\
# Made by scripts/make_demo.py. These weights are random: whatever the robot does with them means nothing.
name = "random-weights-demo"
model = "random.onnx"
sha256 = {{ "random.onnx" = "{model_sha256}" }}
weights = "random"

[inputs.image]
tensor = "images"
layout = "NCHW"
dtype = "float32"
size = [224, 224]
color = "RGB"
resize = "squash"
scale = {1 / 255!r}
mean = {list(IMAGENET_MEAN)}
std = {list(IMAGENET_STD)}
"""
    axes = (
        f'\n[[axis]]\nname = "{name}"\ntensor = "actions"\nindex = {index}\nscale = {scale}\noffset = 0.0\n'
        f'unit = "{unit}"\n'
        for index, (name, scale, unit) in enumerate(AXES)
    )
    return head + "".join(axes)


def make_clip(path: Path, count: int) -> list[Picture]:
    """Writes the clip, showing how far it is, and returns about 60 of its pictures, evenly spread."""
    backend = cv2.CAP_OPENCV_MJPEG  # the writer that is in every build of OpenCV and takes a quality
    writer = cv2.VideoWriter(str(path), backend, cv2.VideoWriter.fourcc(*"MJPG"), FPS, (WIDTH, HEIGHT))
    if not writer.isOpened():
        sys.exit(f"OpenCV cannot write {path}: is there room for 40 MB, and does this OpenCV have its MJPEG writer?")
    writer.set(cv2.VIDEOWRITER_PROP_QUALITY, JPEG_QUALITY)
    step = max(1, count // 60)
    kept = []
    for number, picture in enumerate(Corridor(np.random.default_rng(SEED)).pictures(count)):
        writer.write(picture)
        if number % step == 0:
            kept.append(picture)
            progress(number, count)
    writer.release()
    progress(count, count)
    return kept


def progress(done: int, count: int) -> None:
    """One line that fills up on a terminal; a log is left alone."""
    if sys.stdout.isatty():
        print(f"\r  [{'#' * (40 * done // count):40}] {done} of {count} pictures", end="", flush=True)
        print(end="\n" if done == count else "")


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def stamp(folder: Path, count: int) -> str:
    """What the outputs in a folder are and what made them; only the same script and outputs give the same text."""
    scripts = (Path(__file__).with_name(name) for name in SCRIPTS)
    files = (*scripts, *(folder / name for name in OUTPUTS))
    return f"{count} pictures\n" + "".join(f"{sha256(path)}  {path.name}\n" for path in files)


def is_current(folder: Path, count: int) -> bool:
    """Whether this very script has made this folder's files and nobody changed them since."""
    if not all((folder / name).is_file() for name in (*OUTPUTS, STAMP)):
        return False
    return (folder / STAMP).read_text() == stamp(folder, count)


def make(folder: Path, count: int) -> None:
    """Makes all files in a folder beside `folder`, then puts it in that place, so that no half-made demo is seen."""
    if folder.exists() and not (folder / STAMP).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        sys.exit(f"{folder} holds something that this script did not make: give --out another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".demo-", dir=folder.parent) as name:
        fresh = Path(name) / "fresh"
        fresh.mkdir()
        network = make_network(SEED, make_clip(fresh / "corridor.avi", count))
        (fresh / "random.onnx").write_bytes(network)
        (fresh / "random.toml").write_text(manifest(hashlib.sha256(network).hexdigest()))
        (fresh / STAMP).write_text(stamp(fresh, count))
        if folder.exists():
            folder.rename(Path(name) / "old")
        fresh.rename(folder)


def main() -> None:
    """Reads the command line and makes what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder for the three files")
    parser.add_argument("--seconds", type=float, default=float(LOOP_S), help="length of the clip (12 makes a loop)")
    parser.add_argument("--force", action="store_true", help="make them anew even when nothing has changed")
    options = parser.parse_args()
    count = round(options.seconds * FPS)
    if count < 2:
        parser.error("--seconds must make at least two pictures, so 0.04 or more")
    folder = options.out.resolve()
    if not options.force and is_current(folder, count):
        return
    print(f"Making the demo's clip and network in {options.out} (once, about {2 + count // 60} s)")
    try:
        make(folder, count)
    except OSError as error:
        sys.exit(f"The demo cannot be written: {error}")


if __name__ == "__main__":
    main()
