"""The user's configuration for the robot on blocks: its rates, limits and real-time settings, and no real device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mvla_daemon.camera_source import SIMULATED
from mvla_daemon.config import BUNDLED, Config
from mvla_daemon.config_load import load_config

BUNDLED_POLICY = {
    "manifest": f"{BUNDLED}cup",
    "backend": "onnxruntime",
    "instruction": "go to the cup, pass the box on its left",
}
_INSTEAD: dict[str, dict[str, Any]] = {
    "camera": {
        "source": SIMULATED,
        "width": 640,
        "height": 480,
        "rotation": 0,
        "flip": "none",
        "latency_ms": 0,
        **dict.fromkeys(("format", "buffers", "sensor_mode")),
    },
    "motor": {"port": SIMULATED},
    # Arms soon and again and again; nothing of that is what makes a stop come.
    "safety": {"arm": "auto", "recover": "auto", "recover_cycles": 5, "max_stops": 1000, "bench_test": False},
    "log": {"format": "json", "level": "info"},
    "sim": {"picture": None},
}


def on_blocks(config: Config, file: Path, *, bundled_policy: bool) -> Config:
    """Write `config`, with the simulated robot in place of the real one, to `file`, and read it back.

    The file has a control socket of its own: nothing that is asked of its daemon can reach another one. DaemonError
    when the user's times do not go together with the simulated camera.
    """
    sections = config.model_dump(mode="json", exclude={"path"})
    instead = {**_INSTEAD, "policy": BUNDLED_POLICY} if bundled_policy else _INSTEAD
    for name, keys in instead.items():
        sections[name] |= keys
    file.write_text("".join(f"[{name}]\n{_table(keys)}\n" for name, keys in sections.items()), encoding="utf-8")
    return load_config(file)


def _table(keys: dict[str, Any]) -> str:
    return "".join(f"{key} = {_toml(value)}\n" for key, value in keys.items() if value is not None)


def _toml(value: Any) -> str:
    """A value as TOML writes it; its strings are JSON's, but for a character that JSON leaves as it is."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + " }"
    return json.dumps(value).replace("\x7f", "\\u007f")
