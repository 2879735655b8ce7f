"""A run of the daemon in simulated time, with the policy that the configuration names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mvla_daemon.config import Config
from mvla_daemon.core.image import Orientation
from mvla_daemon.core.messages import Stage
from mvla_daemon.engines.manifest import Manifest, load_manifest
from mvla_daemon.engines.thinker import Thinker
from mvla_daemon.equipment import engine_for
from mvla_daemon.errors import DaemonError, ExitCode
from mvla_daemon.opencv import load_opencv
from mvla_daemon.ops.errand import Ending
from mvla_daemon.ops.telemetry import Telemetry
from mvla_daemon.sim.instructions import SENTENCES
from mvla_daemon.sim.layout import make_room
from mvla_daemon.sim.lockstep import Lockstep
from mvla_daemon.sim.scrapbook import Scrapbook


class _NoBoard:
    """Nobody has to be told what a process in lockstep was doing when it froze."""

    def write(self, cycle: int, stage: Stage, now_ns: int) -> None:
        """Nothing."""


def load_thinker(config: Config, tell: Callable[[str], None] = lambda _: None) -> tuple[Manifest, Thinker]:
    """The policy that the configuration names, on its engine, loaded for use on this thread; raises DaemonError.

    `tell` is given what loading has to say.
    """
    manifest = load_manifest(Path(config.policy.manifest))
    engine = engine_for(config, manifest, tell)
    camera = config.camera
    orientation = Orientation(camera.rotation, camera.flip)
    thinker = Thinker(manifest, engine, (camera.height, camera.width), orientation, _NoBoard())
    thinker.load()
    return manifest, thinker


def run_lockstep(config: Config, telemetry: Telemetry, wire: Path | None) -> Ending:
    """Drive once in the room of `sim.seed`; writes the picture of the drive and the wire's bytes where asked to.

    Raises DaemonError for what cannot be loaded or, of `wire`, be written. A picture that cannot be drawn is told.
    """
    if wire is not None:
        _write(wire, b"")  # before the drive, which takes longer to find it out
    load_opencv()
    instruction = config.policy.instruction or ""
    room, side = make_room(config.sim.seed), SENTENCES.get(instruction)
    manifest, thinker = load_thinker(config, lambda sentence: telemetry.event("engine", sentence))
    scrapbook = Scrapbook(room, side, instruction)
    about = {
        "name": manifest.name,
        "weights": manifest.weights,
        "engine": config.policy.backend,
        "camera": "simulated camera (capture times: simulated time)",
    }
    drive = Lockstep(
        config,
        room,
        side,
        lambda frame: thinker.think(frame, 0),
        reset=thinker.reset,
        look=scrapbook.look,
        telemetry=telemetry,
        about=about,
    )
    drive.run()
    if wire is not None:
        _write(wire, drive.port.written)
    if config.sim.picture is not None:
        try:
            scrapbook.draw(drive.robot, Path(config.sim.picture))
            telemetry.event("picture", f"The drive from above: {config.sim.picture}", "info")
        except DaemonError as error:
            telemetry.event("picture", str(error), "error")
    return drive.ending


def _write(wire: Path, data: bytes | bytearray) -> None:
    try:
        wire.write_bytes(data)
    except OSError as error:
        raise DaemonError(
            f"--wire {wire} cannot be written ({error.strerror}): name a file in a folder that exists and that you may "
            f"write to.",
            ExitCode.NO_PERMISSION,
        ) from error
