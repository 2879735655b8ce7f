"""The configuration: a TOML file read into frozen models; nothing wrong in it is ever guessed around.

Units are in the names. `config_load.load_config` is the way in from a file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator

from mvla_daemon.camera_source import (
    RECORDING,
    SIMULATED,
    SourceKind,
    device_path,
    is_device,
    is_synthetic,
    kind_of,
)
from mvla_daemon.config_values import (
    Hertz,
    Milliseconds,
    MillisecondsOrZero,
    PathText,
    Priority,
    Section,
    as_pixel_format,
    sayable,
    whole_number,
)
from mvla_daemon.core.limits import AxisLimit
from mvla_daemon.core.messages import MS, SECOND

BUNDLED = "bundled:"
"""How a policy that comes with the package is named."""
BUNDLED_POLICIES = Path(__file__).parent / "bundled"
_TTL_MARGIN_MS = 20
"""How long a command outlives its cycle's worst case, from motor link v1."""


class Control(Section):
    """The cycle's times."""

    rate_hz: Hertz = 50
    deadline_ms: Milliseconds = 20
    max_frame_age_ms: Milliseconds = 100

    @property
    def period_ns(self) -> int:
        """T, the longest time from one cycle's start to the next."""
        return round(SECOND / self.rate_hz)

    @property
    def deadline_ns(self) -> int:
        """How long after its cycle's start a command may reach the gate."""
        return round(self.deadline_ms * MS)

    @property
    def max_frame_age_ns(self) -> int:
        """How old the picture behind the last written command may become."""
        return round(self.max_frame_age_ms * MS)


class Camera(Section):
    """Where pictures come from; `width` and `height` are the camera's own, before it is turned and flipped.

    `format` and `buffers` of None are OpenCV's choice and two, `sensor_mode` of None the driver's choice, `latency_ms`
    of None that nobody said how much of a picture's age the source hides.
    """

    source: PathText
    width: Annotated[int, Field(ge=1, le=8192)] = 640
    height: Annotated[int, Field(ge=1, le=8192)] = 480
    fps: Hertz = 50
    format: Annotated[str, AfterValidator(as_pixel_format)] | None = None
    buffers: Annotated[int, Field(ge=1, le=10)] | None = None
    sensor_mode: Annotated[int, Field(ge=0, le=99)] | None = None
    rotation: Annotated[Literal[0, 90, 180, 270], BeforeValidator(whole_number)] = 0
    flip: Literal["none", "horizontal", "vertical"] = "none"
    frozen_after_ms: MillisecondsOrZero = 500
    latency_ms: MillisecondsOrZero | None = None

    @field_validator("source")
    @classmethod
    def _known_source(cls, source: str) -> str:
        kind_of(source)
        return source

    @property
    def kind(self) -> SourceKind:
        """What stands behind the source."""
        return kind_of(self.source)

    @property
    def is_live(self) -> bool:
        """Whether the pictures show what is before a real camera now."""
        return not (self.is_recorded or self.is_simulated or self.is_null or is_synthetic(self.source))

    @property
    def is_simulated(self) -> bool:
        """Whether the pictures are the simulated robot's."""
        return self.kind is SourceKind.SIMULATED

    @property
    def is_null(self) -> bool:
        """Whether the pictures are of nothing."""
        return self.kind is SourceKind.NULL

    @property
    def is_recorded(self) -> bool:
        """Whether the pictures come from a file instead of a live camera."""
        return self.kind is SourceKind.RECORDING

    @property
    def file_path(self) -> Path | None:
        """The recording, absolute after `load_config`; None for a live camera."""
        return Path(self.source.removeprefix(RECORDING)) if self.is_recorded else None

    @property
    def device(self) -> str | None:
        """The V4L2 camera's path below /dev; None for any other source."""
        return device_path(self.source) if self.kind is SourceKind.V4L2 else None

    @property
    def frame_period_ns(self) -> int:
        """The time between two pictures."""
        return round(SECOND / self.fps)

    @property
    def latency_ns(self) -> int:
        """What the source hides of a picture's age."""
        return round((self.latency_ms or 0) * MS)


class Policy(Section):
    """Which policy thinks, and on what engine; `manifest` is absolute after `load_config`.

    The null engine does not think: it is for measuring everything else, and moves the simulated robot only.
    """

    manifest: PathText
    backend: Literal["onnxruntime", "tensorrt", "null"] = "onnxruntime"
    instruction: Annotated[str, Field(min_length=1), AfterValidator(sayable)] | None = None


class TensorRt(Section):
    """How engines are built; `cache` of None is the user's cache, `dla_core` of None the GPU."""

    precision: Literal["fp16", "fp32"] = "fp16"
    workspace_mib: Annotated[int, Field(ge=1, le=1 << 20)] = 1024
    dla_core: Annotated[int, Field(ge=0, le=15)] | None = None
    cache: PathText | None = None


class Motor(Section):
    """The link to the motor controller; `identify_timeout_s` of 0 waits for one for ever."""

    protocol: Literal["mvla"] = "mvla"
    port: PathText
    baud: Annotated[int, Field(ge=9600, le=4_000_000)] = 921_600
    watchdog_ms: Annotated[int, Field(ge=1, le=65_535)] = 100
    identify_timeout_s: Annotated[float, Field(ge=0)] = 5

    @field_validator("port")
    @classmethod
    def _known_port(cls, port: str) -> str:
        if port == SIMULATED or is_device(port):
            return port
        raise ValueError('must be a serial port\'s device (/dev/serial/by-id/...) or "sim://", the simulated robot')

    @property
    def is_simulated(self) -> bool:
        """Whether the motor controller is the simulated one."""
        return self.port == SIMULATED


class LinearLimit(Section):
    """Greatest speed (m/s) and acceleration (m/s²); a speed has to fit the wire's 32 bits of µm/s."""

    max: Annotated[float, Field(gt=0, le=2000)] = 0.5
    accel: Annotated[float, Field(gt=0)] = 1.0


class AngularLimit(Section):
    """Greatest turn rate (rad/s) and angular acceleration (rad/s²)."""

    max: Annotated[float, Field(gt=0, le=2000)] = 1.5
    accel: Annotated[float, Field(gt=0)] = 4.0


class Limits(Section):
    """What a command may ask for, by axis."""

    linear_x: LinearLimit = LinearLimit()
    linear_y: LinearLimit = LinearLimit()
    angular_z: AngularLimit = AngularLimit()

    def by_axis(self) -> list[AxisLimit]:
        """The limits in the order of the wire's axes."""
        return [AxisLimit(limit.max, limit.accel) for limit in (self.linear_x, self.linear_y, self.angular_z)]


class Safety(Section):
    """How the robot is armed, stopped and armed again."""

    arm: Literal["manual", "auto"] = "manual"
    bench_test: bool = False
    stop_category: Annotated[Literal[0, 1, 2], BeforeValidator(whole_number)] = 1
    stop_timeout_ms: Milliseconds = 1000
    recover: Literal["auto", "never"] = "auto"
    recover_cycles: Annotated[int, Field(ge=1, le=10_000)] = 25
    max_stops: Annotated[int, Field(ge=1, le=1000)] = 3
    stop_window_s: Annotated[float, Field(gt=0, le=86_400)] = 60
    policy_dead_after_ms: Milliseconds = 2000


class Sim(Section):
    """The simulated robot: its room is a function of the seed; `picture` is where the drive is drawn, if anywhere."""

    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 1
    picture: PathText | None = None


class Realtime(Section):
    """What is asked of the operating system."""

    scheduler: Literal["fifo", "other"] = "fifo"
    gate_priority: Priority = 80
    policy_priority: Priority = 70
    lock_memory: bool = True


class Log(Section):
    """How the log is written, and from what level on."""

    format: Literal["auto", "journal", "console", "json"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Sections(Section):
    """The sections of a file."""

    control: Control = Control()
    camera: Camera
    policy: Policy
    tensorrt: TensorRt = TensorRt()
    motor: Motor
    limits: Limits = Limits()
    safety: Safety = Safety()
    realtime: Realtime = Realtime()
    log: Log = Log()
    sim: Sim = Sim()

    @property
    def ttl_ms(self) -> int:
        """How long a VELOCITY stays valid: ceil(T + deadline) + 20, from motor link v1."""
        return -(-(self.control.period_ns + self.control.deadline_ns) // MS) + _TTL_MARGIN_MS


class Config(Sections):
    """A configuration whose every key and combination of keys was checked."""

    path: Path
    """The file, absolute."""

    def resolve(self, relative: str | Path) -> Path:
        """A path of this configuration made absolute: relative ones are relative to the configuration's file."""
        return self.path.parent / relative

    @property
    def simulated(self) -> bool:
        """Whether only a simulated robot moves."""
        return self.motor.is_simulated

    @property
    def bench_test_active(self) -> bool:
        """Whether a real robot may move by pictures that are not of its surroundings, wheels off the ground."""
        return self.safety.bench_test and not self.camera.is_live and not self.motor.is_simulated
