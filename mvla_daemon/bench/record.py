"""The bench's findings for programs: keys may be added, none is renamed."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from mvla_daemon.bench.bound import Bandwidth
from mvla_daemon.bench.contest import Contest, Measured
from mvla_daemon.bench.published import CYCLE_MS, MEASURED_ON
from mvla_daemon.bench.report import Report
from mvla_daemon.bench.subject import Subject


def as_json(report: Report) -> str:
    """All of it."""
    found = {
        "began": report.began,
        "machine": report.machine,
        "engines": list(report.engines),
        "absent": report.absent,
        "tries": report.tries,
        "warm_ups": report.warm_ups,
        "cycle_ms": CYCLE_MS,
        "policies": [_policy(report, subject) for subject in report.subjects],
    }
    return json.dumps(found, indent=1) + "\n"


def _policy(report: Report, subject: Subject) -> dict[str, Any]:
    claim = subject.published
    return {
        "name": subject.name,
        "weights": subject.manifest.weights,
        "parameters": subject.weights.parameters,
        "weight_bytes": {precision: subject.weight_bytes(precision) for precision in subject.precisions},
        "val_mae": subject.val_mae,
        "published": {"label": "published", "measured_on": MEASURED_ON, **asdict(claim)} if claim else None,
        "rows": [_row(report, row) for row in report.rows(subject)],
        "fp32_to_fp16": [
            {"label": "measured", **asdict(pair), "saved_percent": pair.saved_percent} for pair in report.pairs(subject)
        ],
        "memory_bounds": [_bound(report, subject, bandwidth) for bandwidth in report.bandwidths(subject)],
    }


def _row(report: Report, row: Contest) -> dict[str, Any]:
    about = {"engine": row.engine, "precision": row.precision}
    if row.measured is None:
        return {**about, "label": "failed" if row.failed else "not measured", "why": row.why}
    return {**about, "label": "measured", **_figures(row.measured), "difference_from_fp32": report.difference(row)}


def _figures(measured: Measured) -> dict[str, Any]:
    latency = measured.latency
    return {
        "device": measured.device,
        "how": measured.how,
        "n": latency.n,
        "copies_inside": measured.on_gpu,
        "preprocessing_inside": False,
        "throughput_hz": measured.block.throughput_hz,
        "fps": 1000 / latency.mean,
        "cycle_share": latency.mean / CYCLE_MS,
        "ms": {name: spread.as_dict() for name, spread in measured.block.parts.items()},
        "peak_mib": measured.peak_mib,
        "policy_mib": measured.policy_mib,
        "gpu_mib": measured.gpu_mib,
        "answer": measured.answer,
    }


def _bound(report: Report, subject: Subject, bandwidth: Bandwidth) -> dict[str, Any]:
    bounds = {
        precision: {
            "ms": bandwidth.bound_ms(subject.weight_bytes(precision)),
            "fits_the_cache": bandwidth.label == "measured" and report.is_cached(subject, precision),
        }
        for precision in subject.precisions
    }
    return {**asdict(bandwidth), "bounds": bounds}
