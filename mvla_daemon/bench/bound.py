"""What memory allows: a policy that reads W bytes of weights in each inference cannot beat W / memory bandwidth."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

_COPIED_BYTES = 128 << 20
"""Well above every cache that a robot's processor has."""
_TRIES = 5
_SIZE = re.compile(r"(\d+)([KMG]?)")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """How fast a device reads its memory; `label` is published or measured, `source` says by whom or how."""

    device: str
    gb_per_s: float
    label: str
    source: str

    def bound_ms(self, weight_bytes: float) -> float:
        """No inference that reads so many bytes is faster."""
        return weight_bytes / self.gb_per_s / 1e6


_SHEET = "NVIDIA's data sheet"
PUBLISHED = (
    Bandwidth("Jetson Orin NX 16 GB", 102.4, "published", "NVIDIA Jetson Orin NX Series data sheet"),
    Bandwidth("Jetson AGX Orin", 204.8, "published", "NVIDIA Jetson AGX Orin Series data sheet"),
    Bandwidth("Jetson Orin Nano", 68.0, "published", "NVIDIA Jetson Orin Nano Series data sheet"),
    Bandwidth("RTX 3090", 936.0, "published", f"{_SHEET}, GeForce RTX 3090"),
    Bandwidth("RTX 4090", 1008.0, "published", f"{_SHEET}, GeForce RTX 4090"),
    Bandwidth("RTX A5000", 768.0, "published", f"{_SHEET}, RTX A5000"),
    Bandwidth("NVIDIA L4", 300.0, "published", f"{_SHEET}, L4"),
    Bandwidth("Tesla T4", 320.0, "published", f"{_SHEET}, T4"),
    Bandwidth("A100-SXM4-80GB", 2039.0, "published", f"{_SHEET}, A100 80GB SXM"),
    Bandwidth("H100 80GB HBM3", 3350.0, "published", f"{_SHEET}, H100 SXM"),
    Bandwidth("NVIDIA H200", 4800.0, "published", f"{_SHEET}, H200 SXM"),
)
ROBOTS = PUBLISHED[:2]
"""The boards that the policies are for: their bounds are told whatever machine is measured."""


def published_bandwidth(device: str) -> Bandwidth | None:
    """Of a GPU by the name that it or its board gives; None where the list does not have it."""
    spelled = device.lower()
    return next((known for known in PUBLISHED if known.device.lower().removesuffix(" 16 gb") in spelled), None)


def measured_bandwidth(device: str) -> Bandwidth:
    """This machine's memory, by copying: what is read and what is written both count."""
    source = np.ones(_COPIED_BYTES // 8)
    target = np.zeros_like(source)
    best_s = float("inf")
    for _ in range(_TRIES):
        began_s = perf_counter()
        np.copyto(target, source)
        best_s = min(best_s, perf_counter() - began_s)
    how = f"copy of {_COPIED_BYTES >> 20} MiB on one core, read and written, best of {_TRIES}"
    return Bandwidth(device, 2 * source.nbytes / best_s / 1e9, "measured", how)


def cache_bytes(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """The processor's largest cache: weights that fit into it are not read from memory each time. 0 if unknown."""
    found = [0]
    for path in folder.glob("index*/size"):
        with suppress(OSError):
            found += [int(number) * _UNITS[unit] for number, unit in _SIZE.findall(path.read_text())]
    return max(found)
