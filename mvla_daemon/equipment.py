"""The camera and the engine that a configuration names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mvla_daemon.camera_source import SourceKind, pipeline_text, sensor_id
from mvla_daemon.cameras.base import Camera
from mvla_daemon.cameras.file import FileCamera
from mvla_daemon.cameras.gstreamer import csi_camera, pipeline_camera
from mvla_daemon.cameras.null import NullCamera
from mvla_daemon.cameras.rtsp import rtsp_camera
from mvla_daemon.cameras.simulated import SimulatedCamera
from mvla_daemon.cameras.v4l2 import V4l2Camera
from mvla_daemon.config import Config
from mvla_daemon.engines.base import Engine
from mvla_daemon.engines.engine_build import BuildSettings
from mvla_daemon.engines.engine_store import EngineStore
from mvla_daemon.engines.instruction import embedding_for
from mvla_daemon.engines.manifest import Manifest
from mvla_daemon.engines.null import NullEngine
from mvla_daemon.engines.onnxruntime import OnnxRuntimeEngine
from mvla_daemon.engines.tensorrt import TensorRtEngine

if TYPE_CHECKING:
    from mvla_daemon.engines.engine_store import TellBuilt


def camera_for(config: Config, simulated_camera: Path | None, tell: Callable[[str], None]) -> Camera:
    """The camera, not yet open; `simulated_camera` is where the simulator serves its pictures.

    `tell` is given what opening it has to say.
    """
    camera = config.camera
    source, kind, width, height, fps = camera.source, camera.kind, camera.width, camera.height, camera.fps
    if kind is SourceKind.SIMULATED:
        assert simulated_camera is not None
        return SimulatedCamera(simulated_camera)
    if kind is SourceKind.NULL:
        return NullCamera(width, height, fps)
    if camera.file_path is not None:
        return FileCamera(camera.file_path, width, height, fps)
    if kind is SourceKind.CSI:
        return csi_camera(sensor_id(source), width, height, fps, camera.sensor_mode)
    if kind is SourceKind.RTSP:
        return rtsp_camera(source, width, height)
    if kind is SourceKind.PIPELINE:
        return pipeline_camera(pipeline_text(source), width, height)
    assert camera.device is not None
    return V4l2Camera(camera.device, width, height, fps, pixel_format=camera.format, buffers=camera.buffers, tell=tell)


def engine_for(
    config: Config, manifest: Manifest, tell: Callable[[str], None], tell_built: TellBuilt | None = None
) -> Engine:
    """The engine, not yet loaded; `tell` is given what loading it has to say, `tell_built` as by `EngineStore`.

    Raises DaemonError for an instruction that the policy does not know.
    """
    if config.policy.backend == "null":
        return NullEngine(manifest)
    embedding = embedding_for(manifest, config.policy.instruction)
    on_cpu = OnnxRuntimeEngine(manifest, embedding)
    if config.policy.backend == "onnxruntime":
        return on_cpu
    store = engine_store(config, manifest, tell, tell_built=tell_built)
    return TensorRtEngine(manifest, store, on_cpu, embedding)


def engine_store(
    config: Config,
    manifest: Manifest,
    tell: Callable[[str], None],
    *,
    keep_or_fail: bool = False,
    tell_built: TellBuilt | None = None,
) -> EngineStore:
    """Where the policy's TensorRT engine comes from."""
    tensorrt = config.tensorrt
    settings = BuildSettings(
        tensorrt.precision, tensorrt.workspace_mib, tensorrt.dla_core, Path(tensorrt.cache) if tensorrt.cache else None
    )
    embedding = embedding_for(manifest, config.policy.instruction)
    size = None if embedding is None else embedding.size
    return EngineStore(manifest, settings, size, tell, keep_or_fail=keep_or_fail, tell_built=tell_built)
