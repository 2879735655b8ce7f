"""What the gate is put together from, for the machine's time and for simulated time alike."""

from __future__ import annotations

from collections.abc import Callable

from mvla_daemon.config import Config
from mvla_daemon.core.admission import Admission
from mvla_daemon.core.messages import MS, SECOND
from mvla_daemon.core.schedule import HOLD_GRACE_NS
from mvla_daemon.core.session import ARMING_TIMEOUT_NS, Rules
from mvla_daemon.gate import LATE_WAKE_NS, GateSettings
from mvla_daemon.helm import Crew
from mvla_daemon.motors.link_v1 import Drive, Packet, encode
from mvla_daemon.motors.motor_port import Port
from mvla_daemon.motors.mvla import MvlaLink
from mvla_daemon.ops.announce import Announcer
from mvla_daemon.ops.clock import Clock
from mvla_daemon.ops.errand import Errand
from mvla_daemon.ops.telemetry import Telemetry
from mvla_daemon.policy_keeper import Keeper

SLOW_LINE_SHARE = 0.05
"""A command's time on the line, as a share of the deadline, from which on it is worth a word."""


def gate_settings(config: Config, end_ns: int | None) -> GateSettings:
    """What the gate's loop needs of the configuration; `end_ns` is when a bounded run ends."""
    safety, control = config.safety, config.control
    return GateSettings(
        rules=Rules(
            auto_arm=safety.arm == "auto",
            auto_recover=safety.recover == "auto",
            stop_category=safety.stop_category,
            stop_timeout_ns=round(safety.stop_timeout_ms * MS),
            max_stops=safety.max_stops,
            stop_window_ns=round(safety.stop_window_s * SECOND),
            arming_timeout_ns=max(ARMING_TIMEOUT_NS, 2 * safety.recover_cycles * (control.period_ns + HOLD_GRACE_NS)),
        ),
        late_wake_ns=max(10 * control.period_ns, LATE_WAKE_NS),
        policy_dead_ns=round(safety.policy_dead_after_ms * MS),
        identify_ns=round(config.motor.identify_timeout_s * SECOND),
        end_ns=end_ns,
    )


def crew(
    config: Config,
    port: Port,
    keeper: Keeper,
    telemetry: Telemetry,
    clock: Clock,
    errand: Errand,
    random_u32: Callable[[], int],
) -> Crew:
    """What the gate works with; `random_u32` draws the link's sessions and nonces."""
    control = config.control
    link = motor_link(config, random_u32)
    return Crew(
        admission=Admission(
            period_ns=control.period_ns,
            allowed_ns=control.deadline_ns,
            max_frame_age_ns=control.max_frame_age_ns,
            frozen_after_ns=round(config.camera.frozen_after_ms * MS),
            limits=config.limits.by_axis(),
            rehearsals=config.safety.recover_cycles,
        ),
        link=link,
        port=port,
        keeper=keeper,
        announce=Announcer(telemetry, session=lambda: link.session),
        clock=clock,
        errand=errand,
    )


def motor_link(config: Config, random_u32: Callable[[], int]) -> MvlaLink:
    """The host's side of the motor link."""
    limits = config.limits
    return MvlaLink(
        watchdog_ms=config.motor.watchdog_ms,
        ttl_ms=config.ttl_ms,
        accel=(limits.linear_x.accel, limits.linear_y.accel, limits.angular_z.accel),
        period_ns=config.control.period_ns,
        random_u32=random_u32,
    )


def line_ms(config: Config) -> float:
    """How long a VELOCITY is on the serial line, where a byte takes ten bit times (8N1)."""
    packet = encode(Packet(1, 1, Drive(1, config.ttl_ms, 1, 1, 1)))
    return len(packet) * 10_000 / config.motor.baud


def slow_line(config: Config) -> str:
    """What is to be said of a line whose time is too much beside the deadline, which it is a part of; else nothing."""
    if config.simulated or line_ms(config) <= SLOW_LINE_SHARE * config.control.deadline_ms:
        return ""
    return (
        f"at {config.motor.baud} baud a command takes {line_ms(config):.1f} ms on the line, beside a deadline of "
        f"{config.control.deadline_ms:g} ms; raise motor.baud where the controller can"
    )
