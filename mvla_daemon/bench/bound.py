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


# NVIDIA's own figures, as its documents and their numbers are quoted; of boards with several, the fastest, so that the
# bound holds for all of them.
PUBLISHED = (
    Bandwidth("Jetson Orin NX", 102.4, "published", "NVIDIA, Jetson Orin technical specifications, DS-10712-001"),
    Bandwidth("Jetson AGX Orin", 204.8, "published", "NVIDIA, Jetson Orin technical specifications, TB-10749-001"),
    Bandwidth("Jetson Orin Nano", 102.0, "published", "NVIDIA, Orin Nano Super data sheet 3575392, 8 GB; 68 before"),
    Bandwidth("RTX 3090", 936.0, "published", "NVIDIA, Ampere GA102 GPU architecture v2.1"),
    Bandwidth("RTX 4090", 1008.0, "published", "NVIDIA, Ada GPU architecture v2.02"),
    Bandwidth("RTX A5000", 768.0, "published", "NVIDIA, RTX A5000 data sheet"),
    Bandwidth("NVIDIA L4", 300.0, "published", "NVIDIA, L4 product brief PB-11316-001"),
    Bandwidth("Tesla T4", 320.0, "published", "NVIDIA, T4 product brief PB-09256-001; 300 in the T4 data sheet"),
    Bandwidth("A100-SXM4-80GB", 2039.0, "published", "NVIDIA, A100 data sheet 2188504, May 2022, SXM"),
    Bandwidth("H100 80GB HBM3", 3350.0, "published", "NVIDIA, H100 data sheet, SXM"),
    Bandwidth("NVIDIA H200", 4800.0, "published", "NVIDIA, H200 data sheet 3367400, July 2024"),
)
ROBOTS = PUBLISHED[:2]
"""The boards that the policies are for: their bounds are told whatever machine is measured."""


def published_bandwidth(device: str) -> Bandwidth | None:
    """Of a GPU by the name that it or its board gives; None where the list does not have it.

    A board's name goes on with that of its kit. A GPU's does not: a `Ti`, a `Laptop GPU` or a `MIG` slice is another.
    """
    for known in PUBLISHED:
        end = r"\b" if known.device.startswith("Jetson") else "$"
        if re.search(rf"\b{re.escape(known.device)}{end}", device.strip(), re.IGNORECASE):
            return known
    return None


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
