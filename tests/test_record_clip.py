"""The clip of a simulated drive that the measurements use."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import cv2
import pytest

from tests.meanwhile import politely

SCRIPT = Path(__file__).parent.parent / "scripts" / "record_clip.py"


@pytest.mark.meanwhile
def test_the_clip_has_pictures_of_the_drive_at_their_rate(tmp_path: Path) -> None:
    path = tmp_path / "new" / "room.avi"
    subprocess.run(
        politely(sys.executable, str(SCRIPT), "--out", str(path), "--seed", "3"),
        env=dict(os.environ),
        check=True,
        timeout=120,
    )
    assert [file.name for file in path.parent.iterdir()] == ["room.avi"]
    clip = cv2.VideoCapture(str(path))
    assert clip.get(cv2.CAP_PROP_FPS) == 50
    seen = []
    while (read := clip.read())[0]:
        seen.append(read[1])
    clip.release()
    assert 350 < len(seen) < 700  # a drive of 7 to 14 s
    assert {picture.shape for picture in seen} == {(480, 640, 3)}
    assert all((one != other).mean() > 0.05 for one, other in pairwise(seen[:50]))
