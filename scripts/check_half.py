"""Compares a policy in FP32 with the same cast to FP16, on the frames of a clip and of the simulator.

    python scripts/check_half.py policies/simple/gpu-simple.toml --clip drive.mp4

For each axis it prints the largest error, how much the answers vary from frame to frame, and the one in units of the
other, which may be 5 %. Answers of random weights hardly vary, so those are scaled up, all by one factor, until they
do; a network in which they never do is refused. Frames in another order and an answer that never changes must fail the
same check. ONNX Runtime's CPU rounds FP16's weights, inputs and outputs, but adds up in FP32: a GPU's own rounding
shows on a GPU only.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, numpy_helper

from mvla_daemon.bench.subject import weights_of
from mvla_daemon.core.image import Preprocessor
from mvla_daemon.engines import half_graph
from mvla_daemon.engines.deviation import LEAST_FRAMES, LEAST_SPREAD, Deviation, deviations
from mvla_daemon.engines.half import cast_to_half
from mvla_daemon.engines.instruction import read_table
from mvla_daemon.engines.manifest import load_manifest
from mvla_daemon.errors import DaemonError, ExitCode
from mvla_daemon.opencv import load_opencv
from mvla_daemon.sim.layout import make_room
from mvla_daemon.sim.picture import Painter
from mvla_daemon.sim.room import CAMERA_HEIGHT_PX, CAMERA_WIDTH_PX, Pose

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from mvla_daemon.engines.manifest import Manifest

_STEP, _STEPS = 1.25, 14
"""Each layer of a network as PyTorch makes it halves what varies; this ends at eighteen times the weights."""
_FEW = 12
"""Images that a factor is tried on first."""
_POSES = 12
"""Pictures taken in each room."""


def clip_frames(path: Path, count: int) -> Iterator[NDArray[np.uint8]]:
    """So many frames of a clip, evenly over its length, BGR; raises DaemonError, NO_INPUT."""
    cv2 = load_opencv()
    video = cv2.VideoCapture(str(path))
    length = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    wanted = {round(at) for at in np.linspace(0, length - 1, count)}
    found = 0
    for number in range(length):
        if not video.grab():
            break
        if number in wanted:
            found += 1
            yield video.retrieve()[1]
    video.release()
    if found < count:
        raise DaemonError(f"{path} has {found} frames of the {count} that are needed: name another", ExitCode.NO_INPUT)


def simulator_frames(count: int) -> Iterator[NDArray[np.uint8]]:
    """So many pictures of the simulated robot's camera, in rooms and from poses that are always the same, BGR."""
    for number in range(count):
        if number % _POSES == 0:
            room = make_room(number // _POSES)
            painter, chance = Painter(room), np.random.default_rng(number)
        x_m, y_m, yaw_rad = chance.uniform((0.3, -0.7, -0.6), (2.0, 0.7, 0.6))
        picture = np.empty((CAMERA_HEIGHT_PX, CAMERA_WIDTH_PX, 3), np.uint8)
        painter.paint(Pose(x_m, y_m, yaw_rad), number, picture)
        yield picture


def exact_policy(path: Path) -> Manifest:
    """The policy's manifest; raises DaemonError, also where its weights are rounded already."""
    manifest = load_manifest(path)
    if weights_of(manifest.model).half:
        sentence = f"{manifest.name} is in FP16 already: name the manifest of the same policy in FP32"
        raise DaemonError(sentence, ExitCode.USAGE)
    return manifest


def images_for(manifest: Manifest, frames: Iterator[NDArray[np.uint8]]) -> list[NDArray[np.generic]]:
    """What the daemon's own preprocessing makes of the frames for this policy."""
    prepared = []
    for frame in frames:
        image = np.empty(manifest.inputs.image.shape, manifest.inputs.image.dtype)
        Preprocessor(manifest.inputs.image, *frame.shape[:2])(frame, image)
        prepared.append(image)
    return prepared


def answers(manifest: Manifest, model: Path, images: Sequence[NDArray[np.generic]]) -> NDArray[np.float64]:
    """What the policy's axes read after each image, (images, axes), before scale and offset; states start at zero."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    others = {
        node.name: np.zeros([n if isinstance(n, int) else 1 for n in node.shape], types.get(node.type, np.float32))
        for node in session.get_inputs()
        if node.name != manifest.inputs.image.tensor
    }
    if told := manifest.inputs.instruction:
        others[told.tensor][0] = read_table(told.table)[1][0]
    names = [*dict.fromkeys([*(axis.tensor for axis in manifest.axes), *(state.output for state in manifest.states)])]
    rows = []
    for image in images:
        given = dict(zip(names, session.run(names, {manifest.inputs.image.tensor: image, **others}), strict=True))
        others |= {state.input: given[state.output] for state in manifest.states}
        rows.append([float(given[axis.tensor].flat[axis.index]) for axis in manifest.axes])
    return np.array(rows)


def scale_weights(source: Path, target: Path, factor: float) -> None:
    """Write the model with all its matrices and kernels times a factor; thresholds stay."""
    model = onnx.load(source)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            scaled = numpy_helper.to_array(tensor) * np.float32(factor)
            tensor.CopyFrom(numpy_helper.from_array(scaled, tensor.name))
    half_graph.write(model, target)


def spread_out(
    manifest: Manifest, images: Sequence[NDArray[np.generic]], target: Path
) -> tuple[float, NDArray[np.float64]]:
    """Write the policy's model with its random weights scaled until every answer varies enough; factor and answers.

    A few of the images rule most factors out, which for a large policy is minutes each.
    """
    for step in range(_STEPS):
        factor = _STEP**step
        scale_weights(manifest.model, target, factor)
        for some in (images[:: max(1, len(images) // _FEW)], images):
            exact = answers(manifest, target, some)
            if exact.std(axis=0).min() < LEAST_SPREAD:
                break
        else:
            return factor, exact
    sentence = f"{manifest.name}: scaled up or not, its random weights answer alike to all frames: take trained ones"
    raise DaemonError(sentence, ExitCode.CONFIG)


def check(manifest: Manifest, images: Sequence[NDArray[np.generic]]) -> tuple[float, list[Deviation], list[str]]:
    """The factor on random weights, each axis's deviation, and everything that is wrong; raises DaemonError."""
    with tempfile.TemporaryDirectory() as folder:
        model, half, factor = manifest.model, Path(folder) / "half.onnx", 1.0
        if manifest.weights == "random":
            model = Path(folder) / "scaled.onnx"
            factor, exact = spread_out(manifest, images, model)
        else:
            exact = answers(manifest, model, images)
        cast_to_half(model, half)
        rounded = answers(manifest, half, images)
    found = deviations(exact, rounded)
    names = [axis.name for axis in manifest.axes]
    wrong = [f"{name}: {one.problem}" for name, one in zip(names, found, strict=True) if one.problem]
    shuffled = np.random.default_rng(1).permutation(rounded)
    constant = np.broadcast_to(rounded[:1], rounded.shape)
    for what, spoilt in (("frames in another order", shuffled), ("an answer that never changes", constant)):
        if not all(one.problem for one in deviations(exact, spoilt)):
            wrong.append(f"{what} would pass, so this check proves nothing")
    return factor, found, wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """Check one policy and print what was found; the exit code, 1 where it does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--clip", type=Path, help="a recorded drive; without one all frames are the simulator's")
    parser.add_argument("--frames", type=int, default=120, help="in all (120)")
    options = parser.parse_args(arguments)
    if options.frames < LEAST_FRAMES:
        parser.error(f"--frames is at least {LEAST_FRAMES}")
    try:
        manifest = exact_policy(options.manifest)
        filmed = math.ceil(options.frames / 2) if options.clip else 0
        images = images_for(manifest, clip_frames(options.clip, filmed)) if options.clip else []
        images += images_for(manifest, simulator_frames(options.frames - filmed))
        factor, found, wrong = check(manifest, images)
    except DaemonError as error:
        print(f"check_half: {error}", file=sys.stderr)
        return error.exit_code
    whose = f"RANDOM WEIGHTS times {factor:.3g}" if manifest.weights == "random" else "trained weights"
    print(f"{manifest.name}, {whose}, {filmed} frames of a clip and {options.frames - filmed} of the simulator:")
    for axis, one in zip(manifest.axes, found, strict=True):
        print(f"  {axis.name:10} error {one.error:.2e}, spread {one.spread:.3f}, that is {one.share:.3%}")
    print("".join(f"BROKEN: {sentence}\n" for sentence in wrong), end="")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
