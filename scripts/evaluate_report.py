"""What an evaluation says: a table for people, all drives as JSON, and the thresholds that a release has to hold."""

from __future__ import annotations

import platform
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeAlias

import cv2
import numpy as np
import onnxruntime as ort
from evaluate_drives import STRAIGHT_MPS, Ended, Kind

from mvla_daemon import __version__
from mvla_daemon.ops.statistics import percentile
from mvla_daemon.sim.world import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mvla_daemon.engines.manifest import Manifest

Rows: TypeAlias = "dict[Kind, list[Ended]]"
"""The drives of each kind, in the order of their seeds; a kind that was not driven is not there."""

_OUTCOMES = {
    "wrong side": Outcome.WRONG_SIDE,
    "box": Outcome.TOUCHED_BOX,
    "other box": Outcome.TOUCHED_OTHER_BOX,
    "cup": Outcome.TOUCHED_CUP,
    "wall": Outcome.TOUCHED_WALL,
    "timeout": Outcome.TIMEOUT,
    "other": Outcome.RUNNING,
}
"""Columns of the table; the boxes, the cup and the wall were touched, and "other" never moved or ended by an error."""
LEAST_REACHED = {Kind.POLICY: 0.95, Kind.SWAPPED: 0.90, Kind.REAL_TIME: 0.90}
MOST_REACHED = {Kind.BLACK: 0.30, Kind.STRAIGHT: 0.20}


def policy_name(manifest: Manifest) -> str:
    """The policy and where its weights come from; random ones cannot be overlooked."""
    weights = manifest.weights if manifest.weights == "trained" else f"{manifest.weights} weights".upper()
    return f"{manifest.name} ({weights})"


def title(kind: Kind, manifest: Manifest, seeds: range) -> str:
    """Of the picture of all ways of a kind."""
    what = {
        Kind.POLICY: f"Policy {policy_name(manifest)}",
        Kind.BLACK: f"Control, camera black: policy {policy_name(manifest)}",
        Kind.STRAIGHT: f"Control, straight ahead at {STRAIGHT_MPS} m/s without a policy",
        Kind.SWAPPED: f"Control, told the other side: policy {policy_name(manifest)}",
    }
    return f"{what[kind]}, {seeds_name(seeds)}"


def seeds_name(seeds: range) -> str:
    """The first and the last."""
    return f"seeds {seeds.start} to {seeds.stop - 1}" if len(seeds) > 1 else f"seed {seeds.start}"


def summary(drives: list[Ended]) -> dict[str, Any]:
    """One row of the table: counts, and of the drives that reached the cup seconds and the least gap in metres."""
    durations_s = sorted(one.duration_s for one in drives if one.reached and one.duration_s is not None)
    gaps_m = [one.gap_m for one in drives if one.reached and one.gap_m is not None]
    return {
        "n": len(drives),
        "reached": sum(one.reached for one in drives),
        **{name: sum(one.outcome is outcome for one in drives) for name, outcome in _OUTCOMES.items()},
        "p50 s": percentile(durations_s, 50) if durations_s else None,
        "p99 s": percentile(durations_s, 99) if durations_s else None,
        "least gap m": min(gaps_m, default=None),
        "stops": sum(len(one.stops) for one in drives),
    }


def table(rows: Rows) -> str:
    """A line for each kind of drive; then which drives failed that should not have, and how."""
    summaries = {kind: summary(drives) for kind, drives in rows.items()}
    names = list(next(iter(summaries.values())))
    lines = [f"{'drives':<20}" + "".join(f"{name:>{_width(name)}}" for name in names)]
    for kind, row in summaries.items():
        lines.append(f"{kind.value:<20}" + "".join(f"{_cell(value):>{_width(name)}}" for name, value in row.items()))
    for kind in LEAST_REACHED:
        for one in rows.get(kind, []):
            if one.stops or not one.reached:
                stops = "".join(f"; STOP {reason} after {at_s:.1f} s" for at_s, reason in one.stops)
                said = f" ({one.said})" if one.said and one.outcome is Outcome.RUNNING else ""
                lines.append(f'{kind.value}, seed {one.seed}, "{one.instruction}": {one.outcome.value}{said}{stops}')
    return "\n".join(lines)


def _width(name: str) -> int:
    return max(len(name), 5) + 2


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.2f}"


def checks(rows: Rows, *, repeats: bool) -> Iterator[tuple[bool, str]]:
    """Whether each threshold holds, and what it is; `repeats` says whether two runs wrote the same bytes."""
    for kind, drives in rows.items():
        share = sum(one.reached for one in drives) / len(drives)
        if kind in LEAST_REACHED:
            yield share >= LEAST_REACHED[kind], f"{kind.value}: {share:.0%} reached, at least {LEAST_REACHED[kind]:.0%}"
        else:
            yield share <= MOST_REACHED[kind], f"{kind.value}: {share:.0%} reached, at most {MOST_REACHED[kind]:.0%}"
    if Kind.REAL_TIME in rows:
        stops = sum(len(one.stops) for one in rows[Kind.REAL_TIME])
        yield stops == 0, f"{Kind.REAL_TIME.value}: {stops} stops, at most 0"
    yield repeats, "two drives of one seed in simulated time write the same bytes to the motors"


def as_json(manifest: Manifest, rows: Rows, again: Ended) -> dict[str, Any]:
    """All that was found out; `again` is the second run of the first drive."""
    first = rows[Kind.POLICY][0]
    return {
        "policy": {
            "name": manifest.name,
            "weights": policy_name(manifest),
            "model": manifest.model.name,
            "sha256": model_sha256(manifest),
        },
        "versions": {
            "mvla_daemon": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "opencv": cv2.__version__,
            "onnxruntime": ort.__version__,
        },
        "machine": platform.machine(),
        "repeated": {"seed": first.seed, "wire_sha256": [first.wire_sha256, again.wire_sha256]},
        "summary": {kind.value: summary(drives) for kind, drives in rows.items()},
        "drives": {kind.value: [_record(one) for one in drives] for kind, drives in rows.items()},
    }


def model_sha256(manifest: Manifest) -> str:
    """Of the model's file, which `load_manifest` has held against it."""
    return manifest.sha256[manifest.model]


def _record(one: Ended) -> dict[str, Any]:
    """A drive, its enumerations by their values and its numbers to the millimetre and millisecond."""
    record = asdict(one) | {"outcome": one.outcome.value, "passed": one.passed.value if one.passed else None}
    del record["kind"]
    for key in ("duration_s", "gap_m"):
        record[key] = None if record[key] is None else round(record[key], 3)
    record["stops"] = [{"at_s": round(at_s, 3), "reason": reason} for at_s, reason in one.stops]
    return record
