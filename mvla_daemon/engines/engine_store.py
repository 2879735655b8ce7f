"""The engine of a policy, from the cache if it fits, else built and kept, before anything can move."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timezone
from time import monotonic
from typing import TYPE_CHECKING, Any

from mvla_daemon.engines.engine_build import BuildSettings, EngineBuilder
from mvla_daemon.engines.engine_cache import EngineCache, Found, write_whole
from mvla_daemon.engines.files import external_files
from mvla_daemon.engines.jetpack import jetpack_release
from mvla_daemon.errors import DaemonError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from typing import TypeAlias

    from mvla_daemon.engines.cuda import Cuda
    from mvla_daemon.engines.manifest import Manifest
    from mvla_daemon.engines.tensorrt_library import TensorRt

    TellBuilt: TypeAlias = Callable[[str, Mapping[str, Any]], None]


class EngineStore:
    """Finds, builds and keeps; `tell` is given sentences for the log.

    Where there is a `tell_built`, it is given that an engine was built instead: the sentence, and what it says by name.
    With `keep_or_fail` an engine that cannot be kept is an error; otherwise it is used, and built again at the next
    start. `embedding_size` is the instruction's, None without one.
    """

    def __init__(
        self,
        manifest: Manifest,
        settings: BuildSettings,
        embedding_size: int | None,
        tell: Callable[[str], None],
        *,
        keep_or_fail: bool = False,
        tell_built: TellBuilt | None = None,
    ) -> None:
        self._manifest = manifest
        self._settings = settings
        self._builder = EngineBuilder(manifest, settings, embedding_size, tell)
        self._tell = tell
        self._tell_built: TellBuilt = tell_built or (lambda sentence, _: tell(sentence))
        self._keep_or_fail = keep_or_fail
        self.cache = EngineCache(settings.folder, manifest.name)
        self._key: dict[str, str] = {}
        self._parity: Mapping[str, Any] = {}

    def key(self, cuda: Cuda, tensorrt: TensorRt) -> dict[str, str]:
        """All that an engine depends on."""
        manifest, settings = self._manifest, self._settings
        files = {manifest.model, *external_files(manifest.model)}
        return {
            **{f"sha256 of {file.name}": manifest.sha256[file] for file in sorted(files)},
            "precision": settings.precision,
            "tensorrt": str(tensorrt.trt.__version__),
            "gpu": cuda.gpu,
            "jetpack": jetpack_release() or "none",
            "profile": f"batch 1, pictures {manifest.inputs.image.shape}",
            "workspace_mib": str(settings.workspace_mib),
            "dla_core": "none" if settings.dla_core is None else str(settings.dla_core),
        }

    def open(self, cuda: Cuda, tensorrt: TensorRt) -> Any:
        """The engine, ready for its context; raises DaemonError."""
        key = self._key = self.key(cuda, tensorrt)
        found = self.cache.find(key)
        self._parity = found.parity or {}
        runtime = tensorrt.trt.Runtime(tensorrt.logger)
        if found.plan is not None:
            engine = runtime.deserialize_cuda_engine(found.plan)
            if engine is not None:
                self._tell(f"engine from the cache: {found.why}")
                return engine
            self._parity = {}
            found = Found(None, f"TensorRT does not take {self.cache.path(key)} ({tensorrt.complaints()})")
        engine = runtime.deserialize_cuda_engine(self._plan(key, tensorrt, found.why))
        if engine is None:
            raise DaemonError(
                f"policy {self._manifest.name}: TensorRT does not take the engine that it has just built "
                f"({tensorrt.complaints()}): free memory on the device and start again",
                ExitCode.UNAVAILABLE,
            )
        return engine

    def agreed(self, subject: str) -> str:
        """What an earlier comparison of this very engine found for `subject`; empty where there was none."""
        return str(self._parity["found"]) if self._parity.get("subject") == subject else ""

    def note_agreement(self, subject: str, found: str) -> None:
        """Remember what a comparison found, so that it need not be done at every start."""
        self.cache.note_parity(self._key, {"subject": subject, "found": found})

    def _plan(self, key: dict[str, str], tensorrt: TensorRt, why: str) -> bytes:
        """Build, unless another process has done so while this one was waiting for it; raises DaemonError."""
        rejected = self.cache.find(key).plan
        try:
            waiting = "another process is building this engine; waiting for it"
            with self.cache.alone(key, lambda: self._tell(waiting)) as scratch:
                found = self.cache.find(key)
                if found.plan is not None and found.plan != rejected:
                    return found.plan
                self._tell(f"building the engine, which may take minutes: {why}")
                return self._build(key, tensorrt, scratch)
        except OSError as error:
            raise DaemonError(
                f"engines cannot be built in {self.cache.folder} ({error.strerror}): make room there, make it "
                "writable, or set tensorrt.cache to another folder",
                ExitCode.NO_PERMISSION,
            ) from None

    def _build(self, key: dict[str, str], tensorrt: TensorRt, scratch: Path) -> bytes:
        began_s = monotonic()
        timing_path, timing = self.cache.timing(key), b""
        with suppress(OSError):
            timing = timing_path.read_bytes()
        plan, timing = self._builder.build(tensorrt, timing, scratch)
        seconds = round(monotonic() - began_s, 1)
        about = {"built": datetime.now(timezone.utc).isoformat(timespec="seconds"), "seconds": seconds}
        fields: dict[str, Any] = {name: key[name] for name in ("precision", "tensorrt", "gpu")}
        fields |= {"policy": self._manifest.name, "duration_us": round(seconds * 1_000_000)}
        try:
            write_whole(timing_path, timing, scratch)
            fields["path"] = str(self.cache.keep(key, plan, about, scratch))
            kept = f"kept as {fields['path']}"
        except OSError as error:
            if self._keep_or_fail:
                raise
            kept = (
                f"could not be kept ({error.strerror}), so it will be built again at the next start: make room in "
                f"{self.cache.folder}"
            )
        self._tell_built(f"engine built in {seconds} s and {kept}", fields)
        return plan
