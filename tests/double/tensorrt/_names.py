"""The names that a version of TensorRT has."""

from __future__ import annotations

import json
import os
from enum import IntEnum
from pathlib import Path
from typing import Any

LISTS = Path(__file__).parents[2] / "data" / "tensorrt_api"
_LIST: dict[str, Any] = json.loads((LISTS / f"{os.environ.get('MVLA_DOUBLE_TENSORRT', '10.3')}.json").read_bytes())
VERSION: str = _LIST["version"]
ENUMS: dict[str, type[IntEnum]] = {name: IntEnum(name, members) for name, members in _LIST["enums"].items() if members}


def public(cls: type) -> set[str]:
    return {name for name in vars(cls) if not name.startswith("_")}


def listed(cls: type) -> set[str]:
    return set(_LIST["classes"][cls.__name__])


def check_classes(*classes: type) -> None:
    for cls in classes:
        if strange := public(cls) - listed(cls):
            raise AttributeError(f"TensorRT {VERSION}'s {cls.__name__} has no {', '.join(sorted(strange))}")


class Listed:
    """An object that takes no attribute but those that the list gives its class."""

    def __setattr__(self, name: str, value: object) -> None:
        if not name.startswith("_") and name not in listed(type(self)):
            raise AttributeError(f"TensorRT {VERSION}'s {type(self).__name__} has no {name}")
        object.__setattr__(self, name, value)
