import math
import struct

import pytest

from mvla_daemon.core.action import ActionMapping
from mvla_daemon.core.messages import Velocity
from mvla_daemon.engines.manifest import Axis
from tests.onnx_models import axis_table


def mapping(*axes: dict[str, object]) -> ActionMapping:
    return ActionMapping([Axis.model_validate(axis) for axis in axes])


def test_each_axis_reads_its_element_with_its_scale_and_offset() -> None:
    read = mapping(
        axis_table("angular_z", 0, tensor="turn", scale=-3.0),
        axis_table("linear_x", 2, scale=2.0, offset=0.25),
    )
    outputs = {"actions": [9.0, 9.0, 0.5], "turn": [0.5]}
    assert read(outputs) == Velocity(linear_x_mps=1.25, linear_y_mps=0.0, angular_z_radps=-1.5)


def test_an_axis_that_the_policy_has_not_is_zero() -> None:
    assert mapping(axis_table("linear_y", 0))({"actions": [0.5]}) == Velocity(0.0, 0.5, 0.0)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_nan_and_infinity_pass_through_for_the_gate_to_see(value: float) -> None:
    got = mapping(axis_table("linear_x", 0, scale=2.0, offset=1.0))({"actions": [value]}).linear_x_mps
    assert struct.pack("<d", got) == struct.pack("<d", value)


def test_an_overflow_is_infinite_and_raises_nothing() -> None:
    assert mapping(axis_table("linear_x", 0, scale=1e300))({"actions": [1e300]}).linear_x_mps == math.inf


@pytest.mark.parametrize("value", [5e-324, 1e-310, 1e-45, -1e-40, 1.1754942e-38])
def test_a_denormal_is_zero_also_behind_a_large_scale(value: float) -> None:
    assert mapping(axis_table("linear_x", 0, scale=1e38))({"actions": [value]}).linear_x_mps == 0.0


def test_a_denormal_product_is_zero() -> None:
    assert mapping(axis_table("linear_x", 0, scale=1e-30))({"actions": [1e-20]}).linear_x_mps == 0.0


def test_the_smallest_normal_number_is_kept() -> None:
    assert mapping(axis_table("linear_x", 0))({"actions": [1.1754943508222875e-38]}).linear_x_mps > 0.0
