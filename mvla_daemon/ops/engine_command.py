"""`mvla-daemon build-engine`: the policy's TensorRT engine built, kept and compared, so that no start has to wait."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mvla_daemon.engines.cuda import Cuda
from mvla_daemon.engines.instruction import embedding_for
from mvla_daemon.engines.manifest import Manifest, load_manifest
from mvla_daemon.engines.onnxruntime import OnnxRuntimeEngine
from mvla_daemon.engines.tensorrt import TensorRtEngine
from mvla_daemon.engines.tensorrt_library import TensorRt
from mvla_daemon.equipment import engine_store
from mvla_daemon.errors import DaemonError, ExitCode

if TYPE_CHECKING:
    from mvla_daemon.config import Config


def build_engine(config: Config, *, explain: bool) -> int:
    """Build what is not there yet, or with `explain` only say what is there and why; raises DaemonError."""
    if config.policy.backend != "tensorrt":
        raise DaemonError(
            f'policy.backend is "{config.policy.backend}", which needs no engine built: set it to "tensorrt".',
            ExitCode.CONFIG,
        )
    manifest = load_manifest(Path(config.policy.manifest))
    if explain:
        _explain(config, manifest)
        return ExitCode.OK
    embedding = embedding_for(manifest, config.policy.instruction)
    store = engine_store(config, manifest, _tell, keep_or_fail=True)
    with TensorRtEngine(manifest, store, OnnxRuntimeEngine(manifest, embedding), embedding) as engine:
        engine.load()
        engine.warm_up()
        _tell(f"policy {manifest.name} is ready: {engine.how}")
    return ExitCode.OK


def _explain(config: Config, manifest: Manifest) -> None:
    """All that an engine depends on here, and whether there is one for it."""
    cuda = Cuda()
    try:
        store = engine_store(config, manifest, _tell)
        key = store.key(cuda, TensorRt(cuda))
    finally:
        cuda.close()
    width = max(map(len, key))
    _tell("\n".join(f"{name:{width}}  {value}" for name, value in key.items()))
    found = store.cache.find(key)
    _tell(f"used: {found.why}" if found.plan is not None else f"to be built: {found.why}")


def _tell(sentence: str) -> None:
    sys.stdout.write(f"{sentence}\n")
    sys.stdout.flush()
