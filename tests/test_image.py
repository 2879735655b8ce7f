import subprocess
import sys
from itertools import product
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from mvla_daemon.core.image import Orientation, Preprocessor
from mvla_daemon.engines.manifest import ImageInput
from tests.onnx_models import image_table

IMAGENET = {"scale": 1 / 255, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
TURNS = {0: 0, 90: -1, 180: 2, 270: 1}
TURNED = [Orientation(turn) for turn in TURNS]
FLIPPED = [Orientation(turn, flip) for turn in TURNS for flip in ("horizontal", "vertical")]


def picture(height: int, width: int) -> NDArray[np.uint8]:
    """Smooth, and with nothing alike: every channel and direction differs."""
    rows, columns = np.mgrid[:height, :width]
    blue, green, red = rows * 200 / height, columns * 150 / width, (rows + 2 * columns) * 250 / (height + 2 * width)
    return np.stack([blue, green + 40, red], axis=-1).astype(np.uint8)


def spec(**changes: object) -> ImageInput:
    normal = {} if changes.get("dtype") == "uint8" else IMAGENET
    return ImageInput.model_validate(image_table(**{"size": [20, 30], **normal, **changes}))


def reference(image: ImageInput, bgr: NDArray[np.uint8], orientation: Orientation) -> NDArray[np.float64]:
    """The slow way, in the order of the words: turn, flip, fit, order the colors, normalise, lay out."""
    upright = np.rot90(bgr, TURNS[orientation.rotation])
    if orientation.flip != "none":
        upright = upright[:, ::-1] if orientation.flip == "horizontal" else upright[::-1]
    upright = np.ascontiguousarray(upright)
    height, width = upright.shape[:2]
    rows, columns = image.size
    fitted: NDArray[Any] = np.zeros((rows, columns, 3), np.uint8)
    if image.resize == "squash":
        fitted = cv2.resize(upright, (columns, rows), interpolation=cv2.INTER_LINEAR)
    elif image.resize == "letterbox":
        factor = min(rows / height, columns / width)
        tall, wide = round(height * factor), round(width * factor)
        top, left = (rows - tall) // 2, (columns - wide) // 2
        small = cv2.resize(upright, (wide, tall), interpolation=cv2.INTER_LINEAR)
        fitted[top : top + tall, left : left + wide] = small
    else:
        factor = max(rows / height, columns / width)
        tall, wide = round(rows / factor), round(columns / factor)
        top, left = (height - tall) // 2, (width - wide) // 2
        part = upright[top : top + tall, left : left + wide]
        fitted = cv2.resize(part, (columns, rows), interpolation=cv2.INTER_LINEAR)
    ordered = fitted[..., ::-1] if image.color == "RGB" else fitted
    normal: NDArray[np.float64] = (ordered.astype(np.float64) * image.scale - np.array(image.mean)) / np.array(
        image.std
    )
    return normal[None] if image.layout == "NHWC" else normal.transpose(2, 0, 1)[None]


@pytest.mark.parametrize(
    ("layout", "dtype", "resize", "orientation"),
    [
        *product(["NCHW", "NHWC"], ["float32", "float16", "uint8"], ["squash", "letterbox", "crop"], TURNED),
        *product(["NCHW"], ["float32"], ["squash", "letterbox", "crop"], FLIPPED),
    ],
    ids=str,
)
def test_fast_and_slow_agree(layout: str, dtype: str, resize: str, orientation: Orientation) -> None:
    for color, (height, width) in (("RGB", (48, 65)), ("BGR", (65, 47)), ("RGB", (81, 40))):
        image = spec(layout=layout, dtype=dtype, resize=resize, color=color)
        bgr = picture(height, width)
        out = np.full(image.shape, 77, dtype)
        Preprocessor(image, height, width, orientation)(bgr, out)
        one_level = (
            0.0 if orientation == Orientation() else image.scale / min(image.std)
        )  # a turned sum may round the other way
        np.testing.assert_allclose(
            out,
            reference(image, bgr, orientation),
            rtol=1e-3 if dtype == "float16" else 1e-6,
            atol=one_level * 1.01 + 1e-6,
        )


def test_a_second_picture_leaves_nothing_of_the_first() -> None:
    image = spec(resize="letterbox")
    prepare = Preprocessor(image, 48, 80, Orientation(90, "vertical"))
    once, twice = (np.empty(image.shape, np.float32) for _ in range(2))
    prepare(picture(48, 80), once)
    prepare(np.full((48, 80, 3), 255, np.uint8), twice)
    prepare(picture(48, 80), twice)
    np.testing.assert_array_equal(once, twice)


def test_known_colors_of_a_red_picture() -> None:
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 2] = 255
    image = spec()
    out = np.empty(image.shape, np.float32)
    Preprocessor(image, 4, 4)(red, out)
    np.testing.assert_allclose(out[0, :, 0, 0], [2.2489083, -2.0357141, -1.8044444], rtol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((48, 64, 3), np.uint8),
        np.zeros((48, 65), np.uint8),
        np.zeros((48, 65, 4), np.uint8),
        np.zeros((48, 65, 3)),
    ],
)
def test_a_picture_of_another_shape_is_refused_and_nothing_is_written(wrong: NDArray[np.uint8]) -> None:
    image = spec()
    out = np.full(image.shape, 7.0, np.float32)
    with pytest.raises(ValueError, match="the picture is"):
        Preprocessor(image, 48, 65)(wrong, out)
    assert (out == 7.0).all()


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((1, 20, 30, 3), np.float32), np.zeros((1, 3, 20, 30)), np.zeros((1, 3, 20, 60), np.float32)[..., ::2]],
)
def test_an_input_that_cannot_be_written_in_place_is_refused(wrong: NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match="the input is"):
        Preprocessor(spec(), 48, 65)(picture(48, 65), wrong)


def test_a_rotation_by_other_than_a_quarter_is_refused() -> None:
    with pytest.raises(ValueError, match="45"):
        Orientation(45)


def test_without_opencv_there_is_a_sentence() -> None:
    code = (
        "import sys; sys.modules['cv2'] = None\n"
        "from mvla_daemon.opencv import load_opencv\n"
        "from mvla_daemon.errors import DaemonError\n"
        "try: load_opencv()\n"
        "except DaemonError as error: print(error); sys.exit(error.exit_code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 69
    assert "pip install 'mvla-daemon[opencv]'" in done.stdout
    assert "--system-site-packages" in done.stdout


@pytest.mark.parametrize(
    ("orientation", "corner"),
    [
        (Orientation(), (0, 0)),
        (Orientation(90), (0, 1)),  # clockwise: top left goes to top right
        (Orientation(180), (1, 1)),
        (Orientation(270), (1, 0)),
        (Orientation(0, "horizontal"), (0, 1)),
        (Orientation(0, "vertical"), (1, 0)),
        (Orientation(90, "horizontal"), (0, 0)),
        (Orientation(90, "vertical"), (1, 1)),
        (Orientation(270, "horizontal"), (1, 1)),
    ],
    ids=str,
)
def test_where_the_top_left_of_the_sensor_ends_up(orientation: Orientation, corner: tuple[int, int]) -> None:
    lamp = np.zeros((48, 64, 3), np.uint8)
    lamp[:24, :32] = 255
    image = spec(size=[20, 20], dtype="uint8", layout="NHWC")
    out = np.empty(image.shape, np.uint8)
    Preprocessor(image, 48, 64, orientation)(lamp, out)
    quarters = out[0, ::19, ::19, 0]
    assert {tuple(map(int, at)) for at in np.argwhere(quarters == 255)} == {corner}
