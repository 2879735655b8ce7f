"""The driver that a policy learns from: it sees the room as it is and steers to the cup, past the box on a side.

It has no memory, and it acts on what a camera in the same place sees: it looks between box and cup for as long as the
box matters, so that both are in the picture, and lets go of the box before it leaves the picture. The way round the box
is the tangent to a circle around it, always on the instructed side, until the straight way is clear (after TangentBug:
Kamon, Rimon and Rivlin, "TangentBug: A Range-Sensor-Based Navigation Algorithm", IJRR 1998).

The velocity is continuous in the pose, wherever a robot comes that looks roughly to the cup. Where it is abreast of the
box on the wrong side, so that it has to turn from going back to going on, it changes fastest.
"""

from __future__ import annotations

import math

from mvla_daemon.core.messages import Velocity
from mvla_daemon.sim.room import ROBOT_RADIUS_M, Pose, Room, Side
from mvla_daemon.sim.world import gap_to_box_m

CRUISE_MPS = 0.32
FASTEST_MPS = 0.45
FASTEST_TURN_RADPS = 0.9
STOP_AT_M = 0.42
"""From the cup's middle, well inside the half metre that counts."""

_CLEARANCE_M = 0.27
_APPROACH_PER_S = 1.0
_BACK_OFF_MPS = 0.15
_TURN_PER_S = 1.8
_LET_GO_RAD = (math.radians(50), math.radians(75))
"""Box and cup so far apart, seen from the robot: the straight way to the cup is clear of the box."""
_LOOK_AWAY_RAD = (math.radians(70), math.radians(92))
_GIVE_UP_RAD = (math.radians(75), math.radians(100))
"""The same on the wrong side: up to here it goes back round the box, beyond it the box is behind."""
_STEEPEST = 0.9
_WIDEST_RAD = 2.6
_SOFT_RAD = 0.08
_PUSH_FROM_M = 0.12
_PUSH_MPS = 0.30


def expert(room: Room, pose: Pose, side: Side) -> Velocity:
    """The velocity, in the robot's axes, with which to go on from `pose`: at most 0.45 m/s and 0.9 rad/s."""
    turn = 1.0 if side is Side.LEFT else -1.0
    box = room.boxes[0]
    cup_rad = math.atan2(room.cup.y_m - pose.y_m, room.cup.x_m - pose.x_m)
    cup_m = math.hypot(room.cup.x_m - pose.x_m, room.cup.y_m - pose.y_m)
    box_rad = math.atan2(box.y_m - pose.y_m, box.x_m - pose.x_m)
    box_m = math.hypot(box.x_m - pose.x_m, box.y_m - pose.y_m)
    apart_rad = turn * math.remainder(cup_rad - box_rad, math.tau)

    look_rad = cup_rad - turn * _look_aside_rad(apart_rad)
    way_rad = cup_rad + turn * _swerve_rad(apart_rad, _circle_m(room), box_m)
    off_rad = math.remainder(look_rad - pose.yaw_rad, math.tau)
    speed_mps = min(max(_APPROACH_PER_S * (cup_m - STOP_AT_M), -_BACK_OFF_MPS), CRUISE_MPS)
    speed_mps *= max(0.25, math.cos(off_rad))  # first look, then go

    push_x, push_y = _push(room, pose)
    vx, vy = speed_mps * math.cos(way_rad) + push_x, speed_mps * math.sin(way_rad) + push_y
    shrink = min(1.0, FASTEST_MPS / max(math.hypot(vx, vy), FASTEST_MPS))
    cos, sin = math.cos(pose.yaw_rad), math.sin(pose.yaw_rad)
    turn_radps = min(max(_TURN_PER_S * off_rad, -FASTEST_TURN_RADPS), FASTEST_TURN_RADPS)
    return Velocity(shrink * (vx * cos + vy * sin), shrink * (vy * cos - vx * sin), turn_radps)


def _circle_m(room: Room) -> float:
    """The radius of the circle round the box that the robot's middle goes along."""
    box = room.boxes[0]
    return math.hypot(box.length_m, box.width_m) / 2 + ROBOT_RADIUS_M + _CLEARANCE_M


def _swerve_rad(apart_rad: float, circle_m: float, box_m: float) -> float:
    """How far from the cup, towards the instructed side, the way points: 0 where the straight way is clear."""
    needed_rad = _tangent_rad(circle_m / max(box_m, 1e-3)) - apart_rad
    softened_rad = (needed_rad + math.hypot(needed_rad, _SOFT_RAD)) / 2
    held = (
        1.0 - _smooth_step(apart_rad, *_LET_GO_RAD)
        if apart_rad > 0.0
        else 1.0 - _smooth_step(-apart_rad, *_GIVE_UP_RAD)
    )
    return held * softened_rad


def _tangent_rad(closeness: float) -> float:
    """The angle from the box to the tangent of its circle; `closeness` is the circle's radius over the distance.

    That is the arc sine, whose slope has no end at 1: from 0.9 on its tangent goes on instead, past 90 degrees well
    inside the circle, which leads out of it again.
    """
    if closeness <= _STEEPEST:
        return math.asin(closeness)
    slope = 1 / math.sqrt(1 - _STEEPEST**2)
    return min(math.asin(_STEEPEST) + slope * (closeness - _STEEPEST), _WIDEST_RAD)


def _look_aside_rad(apart_rad: float) -> float:
    """How far from the cup, towards the box, the robot looks: half way, until the box is abreast."""
    return apart_rad / 2 * (1.0 - _smooth_step(abs(apart_rad), *_LOOK_AWAY_RAD))


def _push(room: Room, pose: Pose) -> tuple[float, float]:
    """A velocity (m/s, the room's axes) away from walls and boxes that are within reach; (0, 0) on an ordinary way."""
    x_mps = _away_mps(pose.x_m - room.west_m) - _away_mps(room.east_m - pose.x_m)
    y_mps = _away_mps(pose.y_m - room.south_m) - _away_mps(room.north_m - pose.y_m)
    for box in room.boxes:
        away_mps = _away_mps(gap_to_box_m(box, pose.x_m, pose.y_m))
        distance_m = max(math.hypot(pose.x_m - box.x_m, pose.y_m - box.y_m), 1e-3)
        x_mps += away_mps * (pose.x_m - box.x_m) / distance_m
        y_mps += away_mps * (pose.y_m - box.y_m) / distance_m
    return x_mps, y_mps


def _away_mps(from_middle_m: float) -> float:
    gap_m = from_middle_m - ROBOT_RADIUS_M
    return _PUSH_MPS * min(max(1.0 - gap_m / _PUSH_FROM_M, 0.0), 1.0)


def _smooth_step(value: float, begin: float, end: float) -> float:
    """From 0 at `begin` to 1 at `end` without a kink."""
    share = min(max((value - begin) / (end - begin), 0.0), 1.0)
    return share * share * (3 - 2 * share)
