"""Reads a configuration: each key by the models, then how keys go together; all that is wrong is told at once."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from mvla_daemon.camera_source import RECORDING, without_secrets
from mvla_daemon.config import BUNDLED, BUNDLED_POLICIES, Config, Sections
from mvla_daemon.config_rules import RULES
from mvla_daemon.config_source import ConfigSource, dotted

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    policy = policy.model_copy(update={"manifest": str(_manifest(config))})
    tensorrt = config.tensorrt
    if tensorrt.cache is not None:
        tensorrt = tensorrt.model_copy(update={"cache": str(config.resolve(tensorrt.cache))})
    sim = config.sim
    if sim.picture is not None:
        sim = sim.model_copy(update={"picture": str(config.resolve(sim.picture))})
    return config.model_copy(update={"camera": camera, "policy": policy, "tensorrt": tensorrt, "sim": sim})


def _manifest(config: Config) -> Path:
    """The manifest's path: relative to the configuration's file, or inside the package."""
    manifest = config.policy.manifest
    if manifest.startswith(BUNDLED):
        name = manifest.removeprefix(BUNDLED)
        return BUNDLED_POLICIES / name / f"{name}.toml"
    return config.resolve(manifest)


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
    for rule, names in RULES.items():
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
    if isinstance(value, str):
        value = without_secrets(value)
    text = repr(value) if isinstance(value, (str, int, float)) else str(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
