"""Reads a configuration: each key by the models, then how keys go together; all that is wrong is told at once."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import ValidationError

from mvla_daemon.config import RECORDING, Config, Sections
from mvla_daemon.config_source import ConfigSource, dotted
from mvla_daemon.core.messages import MS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pydantic_core import ErrorDetails

    from mvla_daemon.config_source import KeyPath

_EXAMPLES = {
    "camera.source": 'source = "/dev/video0"',
    "policy.manifest": 'manifest = "policy.toml"',
    "motor.port": 'port = "/dev/serial/by-id/usb-..." or, for the simulated robot, port = "sim://"',
}
"""What to write for the keys without a default: a guess could move a robot."""
_LONGEST_SHOWN = 60


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration in a TOML file, with each `section.key=value` of `overrides` laid over it.

    Raises DaemonError (exit code 78) with one line for each thing that is wrong, `FILE:LINE: section.key: what is wrong
    and what to do`; one that came by an override begins with `--set section.key:`. Nothing but the file is opened.
    """
    source = ConfigSource.read(path, overrides)
    sections = check(Sections, source)
    source.raise_problems()
    config = Config(path=path.resolve(), **dict(sections))
    camera, policy = config.camera, config.policy
    if camera.file_path is not None:
        camera = camera.model_copy(update={"source": f"{RECORDING}{config.resolve(camera.file_path)}"})
    policy = policy.model_copy(update={"manifest": str(config.resolve(policy.manifest))})
    return config.model_copy(update={"camera": camera, "policy": policy})


def check(sections: type[Sections], source: ConfigSource) -> Sections:
    """The values of `source` as sections; good for use only if `source` has no problems afterwards."""
    for name in sections.model_fields:
        source.table.setdefault(name, {})  # so that a key missing in a missing section is still named
    wrong: set[KeyPath] = set()
    try:
        checked = sections.model_validate(source.table)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            key = tuple(str(part) for part in details["loc"])
            wrong.add(key)
            source.refuse(key, _sentence(sections, key, details), missing=details["type"] == "missing")
        checked = _unchecked(sections, source.table, wrong)
    for rule, names in _RULES.items():
        keys = [tuple(name.split(".")) for name in names]
        if any(key in wrong or key[:1] in wrong for key in keys):
            continue  # it was already refused by itself
        sentence = rule(checked)
        if sentence is not None:
            source.refuse(source.first_given(keys), sentence)
    return checked


def _unchecked(sections: type[Sections], table: dict[str, Any], wrong: set[KeyPath]) -> Sections:
    """The sections without their wrong keys, for the rules between the keys that are right."""
    made = {}
    for name, info in sections.model_fields.items():
        section = info.annotation
        if section is not None and (name,) not in wrong:
            made[name] = section.model_construct(
                **{key: value for key, value in table[name].items() if (name, key) not in wrong}
            )
    return sections.model_construct(**made)


def _sentence(sections: type[Sections], key: KeyPath, details: ErrorDetails) -> str:
    """What is wrong with one key and what to do, from pydantic's account of it."""
    if details["type"] == "missing":
        return f"must be given, for example {_EXAMPLES[dotted(key)]}"
    if details["type"] == "extra_forbidden":
        return _unknown(sections, key)
    if details["type"] == "model_type":
        rule = "must be a table with keys"
    elif details["type"] == "value_error":
        rule = str(details["ctx"]["error"])
    else:
        rule = re.sub("^[A-Za-z]+ should", "must", details["msg"])
    return f"is {_shown(details['input'])}, but {rule}"


def _unknown(sections: type[Sections], key: KeyPath) -> str:
    model: Any = sections
    for part in key[:-1]:
        model = model.model_fields[part].annotation
    *_, name = key
    kind = "key" if len(key) > 1 else "section"
    known: dict[str, Any] = {section: info.annotation for section, info in sections.model_fields.items()}
    elsewhere = [f"{section}.{name}" for section, fields in known.items() if name in fields.model_fields]
    near = [*get_close_matches(name, model.model_fields, n=1), *elsewhere]
    if near:
        return f'is an unknown {kind}; did you mean "{near[0]}"?'
    return f"is an unknown {kind}; known are {', '.join(model.model_fields)}"


def _shown(value: object) -> str:
    """A value as the file has it, short and on one line."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "an array"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value.bit_length() > 64:
        return "a number of more than 64 bits"
    text = repr(value) if isinstance(value, (str, int, float)) else str(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


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
    cycle_ns = c.control.period_ns + c.control.deadline_ns
    if c.safety.policy_dead_after_ms * MS > cycle_ns:
        return None
    return (
        f"policy_dead_after_ms = {c.safety.policy_dead_after_ms:g} has to be longer than a cycle on time, "
        f"T + deadline_ms = {_ms(cycle_ns, up=True)} ms; raise safety.policy_dead_after_ms"
    )


def _gate_before_policy(c: Sections) -> str | None:
    if c.realtime.gate_priority > c.realtime.policy_priority:
        return None
    return (
        f"gate_priority = {c.realtime.gate_priority} has to be above policy_priority = {c.realtime.policy_priority}, "
        f"or the policy could hold up a stop; raise realtime.gate_priority or lower realtime.policy_priority"
    )


def _real_robot_sees(c: Sections) -> str | None:
    if not c.camera.is_recorded or c.motor.is_simulated or c.safety.bench_test:
        return None
    return (
        "a recording must not drive the real robot on motor.port; set camera.source to a live camera, "
        'motor.port = "sim://", or, with the wheels off the ground, safety.bench_test = true'
    )


_Rule: TypeAlias = "Callable[[Sections], str | None]"
_RULES: dict[_Rule, tuple[str, ...]] = {
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
    _real_robot_sees: ("camera.source", "motor.port", "safety.bench_test"),
}
"""Each rule between keys, which gives a sentence when it is broken, and the keys that it reads, in order of blame."""
