"""How the keys of a configuration go together: each rule gives the sentence for those who break it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from mvla_daemon.camera_source import SourceKind
from mvla_daemon.config import BUNDLED, BUNDLED_POLICIES, Sections
from mvla_daemon.core.freshness import CAMERA_ABSENT_NS
from mvla_daemon.core.messages import MS

if TYPE_CHECKING:
    from collections.abc import Callable


def _ms(time_ns: int, *, up: bool = False) -> str:
    """Milliseconds with at most three digits after the point, rounded down or up, never to the nearest.

    A bound that a sentence names can so be typed in and holds.
    """
    time_us = -(-time_ns // 1000) if up else time_ns // 1000
    return f"{time_us // 1000}.{time_us % 1000:03}".rstrip("0").rstrip(".")


def _deadline_within_cycle(c: Sections) -> str | None:
    if c.control.deadline_ns <= c.control.period_ns:
        return None
    cycle = _ms(c.control.period_ns)
    return (
        f"deadline_ms = {c.control.deadline_ms:g} is longer than the cycle, T = 1000 / rate_hz = {cycle} ms; "
        f"lower control.deadline_ms to at most {cycle} or lower control.rate_hz"
    )


def _frames_young_enough(c: Sections) -> str | None:
    parts = {
        "1000 / camera.fps": c.camera.frame_period_ns,
        "T = 1000 / control.rate_hz": c.control.period_ns,
        "control.deadline_ms": c.control.deadline_ns,
    }
    if c.camera.latency_ns:
        parts["camera.latency_ms"] = c.camera.latency_ns
    oldest_ns = sum(parts.values())
    if oldest_ns <= c.control.max_frame_age_ns:
        return None
    terms = " + ".join(f"{_ms(time_ns, up=True)} ({name})" for name, time_ns in parts.items())
    least = _ms(oldest_ns, up=True)
    return (
        f"a picture may be {terms} = {least} ms old, over max_frame_age_ms = {c.control.max_frame_age_ms:g}; raise "
        f"camera.fps or control.rate_hz, lower control.deadline_ms, or set control.max_frame_age_ms to at least {least}"
    )


def _ttl_within_watchdog(c: Sections) -> str | None:
    if c.ttl_ms <= c.motor.watchdog_ms:
        return None
    return (
        f"a command is valid for ceil(T + deadline_ms) + 20 = {c.ttl_ms} ms, over watchdog_ms = {c.motor.watchdog_ms}; "
        f"set motor.watchdog_ms to at least {c.ttl_ms}, raise control.rate_hz or lower control.deadline_ms"
    )


def _frozen_after_stale(c: Sections) -> str | None:
    if c.camera.frozen_after_ms == 0 or c.camera.frozen_after_ms >= c.control.max_frame_age_ms:
        return None
    return (
        f"frozen_after_ms = {c.camera.frozen_after_ms:g} is under control.max_frame_age_ms = "
        f"{c.control.max_frame_age_ms:g}, so that a picture still young enough would be called frozen; "
        f"raise camera.frozen_after_ms to at least that, or set it to 0 to turn it off"
    )


def _dead_after_a_cycle(c: Sections) -> str | None:
    least_ns = CAMERA_ABSENT_NS + c.control.period_ns + c.control.deadline_ns
    if c.safety.policy_dead_after_ms * MS > least_ns:
        return None
    return (
        f"policy_dead_after_ms = {c.safety.policy_dead_after_ms:g} has to be longer than a camera may be away and a "
        f"cycle on time, 1000 + T + deadline_ms = {_ms(least_ns, up=True)} ms; raise safety.policy_dead_after_ms"
    )


def _gate_before_policy(c: Sections) -> str | None:
    if c.realtime.gate_priority > c.realtime.policy_priority:
        return None
    return (
        f"gate_priority = {c.realtime.gate_priority} has to be above policy_priority = {c.realtime.policy_priority}, "
        f"or the policy could hold up a stop; raise realtime.gate_priority or lower realtime.policy_priority"
    )


def _real_robot_sees(c: Sections) -> str | None:
    if c.camera.is_live or c.motor.is_simulated or c.safety.bench_test:
        return None
    names = {
        SourceKind.RECORDING: "a recording",
        SourceKind.SIMULATED: "a simulated camera",
        SourceKind.PIPELINE: "a pipeline that plays a file or a test picture",
    }
    return (
        f"{names.get(c.camera.kind, 'no camera')} must not drive the real robot on motor.port; set camera.source to a "
        'live camera, motor.port = "sim://", or, with the wheels off the ground, safety.bench_test = true'
    )


def _null_moves_nothing(c: Sections) -> str | None:
    if c.motor.is_simulated or not (c.camera.is_null or c.policy.backend == "null"):
        return None
    return 'null pictures and the null engine are for benches and drive no robot; set motor.port to "sim://"'


def _dla_in_half(c: Sections) -> str | None:
    if c.tensorrt.dla_core is None or c.tensorrt.precision == "fp16":
        return None
    return 'no DLA computes in FP32; set tensorrt.precision to "fp16", or leave tensorrt.dla_core out'


def _bundled_is_there(c: Sections) -> str | None:
    name = c.policy.manifest.removeprefix(BUNDLED)
    if name == c.policy.manifest:
        return None
    known = sorted(path.stem for path in BUNDLED_POLICIES.glob("*/*.toml") if path.stem == path.parent.name)
    if name in known:
        return None
    listed = ", ".join(f'"{BUNDLED}{one}"' for one in known)
    return f"{c.policy.manifest!r} does not come with the package, which has {listed}; name one of those, or a file"


def _simulated_picture(c: Sections) -> str | None:
    camera = c.camera
    if not camera.is_simulated or (camera.width, camera.height, camera.rotation, camera.flip) == (640, 480, 0, "none"):
        return None
    return (
        "the simulated camera takes pictures of 640x480 and is neither rotated nor flipped; set width, height, "
        "rotation and flip to that"
    )


def _hidden_delay_is_stated(c: Sections) -> str | None:
    kind, latency_ms = c.camera.kind, c.camera.latency_ms
    if kind not in _HIDING or (latency_ms is not None and (latency_ms > 0 or kind is not SourceKind.RTSP)):
        return None
    return (
        f"{kind.value} does not tell how old its pictures are; measure it (film a running clock, and compare both) and "
        "set camera.latency_ms" + (" above 0" if kind is SourceKind.RTSP else "")
    )


def _keys_of_v4l2(c: Sections) -> str | None:
    if c.camera.kind not in _HIDING or (c.camera.format is None and c.camera.buffers is None):
        return None
    return f"format and buffers are set on V4L2 devices, not on {c.camera.kind.value}; leave them out"


def _keys_of_csi(c: Sections) -> str | None:
    if c.camera.sensor_mode is None or c.camera.kind not in _WITHOUT_SENSOR_MODE:
        return None
    return f"sensor_mode is chosen on CSI cameras (csi://0), not on {c.camera.kind.value}; leave it out"


_HIDING = {SourceKind.CSI, SourceKind.RTSP, SourceKind.PIPELINE}
"""Live sources whose pictures come without the time at which they were taken."""
_WITHOUT_SENSOR_MODE = {SourceKind.V4L2, SourceKind.RTSP, SourceKind.PIPELINE}
"""Recorded and simulated cameras are left out: a robot's file may be tried with one of those by a single --set."""


Rule: TypeAlias = "Callable[[Sections], str | None]"
RULES: dict[Rule, tuple[str, ...]] = {
    _deadline_within_cycle: ("control.deadline_ms", "control.rate_hz"),
    _frames_young_enough: (
        "control.max_frame_age_ms",
        "camera.fps",
        "control.rate_hz",
        "control.deadline_ms",
        "camera.latency_ms",
    ),
    _ttl_within_watchdog: ("motor.watchdog_ms", "control.deadline_ms", "control.rate_hz"),
    _frozen_after_stale: ("camera.frozen_after_ms", "control.max_frame_age_ms"),
    _dead_after_a_cycle: ("safety.policy_dead_after_ms", "control.rate_hz", "control.deadline_ms"),
    _gate_before_policy: ("realtime.gate_priority", "realtime.policy_priority"),
    _dla_in_half: ("tensorrt.precision", "tensorrt.dla_core"),
    _bundled_is_there: ("policy.manifest",),
    _simulated_picture: ("camera.width", "camera.height", "camera.rotation", "camera.flip", "camera.source"),
    _hidden_delay_is_stated: ("camera.latency_ms", "camera.source"),
    _keys_of_v4l2: ("camera.format", "camera.buffers", "camera.source"),
    _keys_of_csi: ("camera.sensor_mode", "camera.source"),
    _null_moves_nothing: ("motor.port", "camera.source", "policy.backend"),
    _real_robot_sees: ("camera.source", "motor.port", "safety.bench_test"),
}
"""Each rule between keys, which gives a sentence when it is broken, and the keys that it reads, in order of blame."""
