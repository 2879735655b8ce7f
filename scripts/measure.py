"""Measures what the README promises, on this machine: real processes, a real pty, timestamps taken at its far end.

    python scripts/measure.py drive --seconds 60 [--clip FILE | --sim]   commands, gaps, and the cost beside inference
    python scripts/measure.py load --tries 3                     processor time of a simulated drive, by process
    python scripts/measure.py stops --tries 100                  SIGSTOP of the policy process, in motion
    python scripts/measure.py orphan --tries 10                  SIGKILL of the gate, in motion

Run it on an idle machine, as root or with real-time rights, and say so beside the figures.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mvla_daemon.core.messages import MS  # noqa: E402 - the repository is not on the path before
from mvla_daemon.ops.statistics import percentile  # noqa: E402
from tests.rig import REAL, Rig, Scene, freeze, gone, stop_time_ms, thaw  # noqa: E402

CLIP = ROOT / "build" / "room.avi"
INSTRUCTION = "go to the cup, pass the box on its left"


def row(name: str, values: Sequence[float]) -> str:
    """A line of percentiles in milliseconds."""
    ordered = sorted(values)
    cells = "".join(f"{percentile(ordered, share):9.2f}" for share in (50, 90, 99, 99.9))
    return f"{name:<50}{cells}{ordered[-1]:9.2f}{len(ordered):8}"


def heading() -> None:
    """The columns of the rows that follow."""
    print(f"{'ms':<50}{'p50':>9}{'p90':>9}{'p99':>9}{'p99.9':>9}{'max':>9}{'n':>8}")


SIMULATED = Scene(None, "bundled:cup", 640, 480, 50, INSTRUCTION)


def scene(clip: Path | None) -> Scene:
    """A recorded drive of the simulated robot or another clip (whose size and rate OpenCV tells), and its policy."""
    if clip is None:
        if not CLIP.exists():
            subprocess.run([sys.executable, str(ROOT / "scripts/record_clip.py"), "--out", str(CLIP)], check=True)
        return Scene(CLIP, "bundled:cup", 640, 480, 50, INSTRUCTION)
    import cv2  # noqa: PLC0415 - only for another clip

    video = cv2.VideoCapture(str(clip))
    width, height, fps = (round(video.get(key)) for key in (3, 4, 5))
    video.release()
    return Scene(clip.resolve(), "bundled:cup", width, height, fps, INSTRUCTION)


def drive(options: argparse.Namespace) -> None:
    """Drive for a while; what came out at the far end, and how long each frame took to get there."""
    seen_by = SIMULATED if options.sim else scene(options.clip)
    with tempfile.TemporaryDirectory() as folder, Rig(Path(folder), seen_by, pace=REAL) as rig:
        trace = Path(folder) / "trace.csv"
        rig.start_driving("--trace", str(trace))
        time.sleep(options.seconds)
        os.kill(rig.pid, signal.SIGTERM)
        rig.wait()
        wire = [timed for timed in rig.read_wire() if timed.kind == "VELOCITY"]
        stops = [event for event in rig.events("stop") if event["reason"] != "shutdown"]
        rows = [line.split(",") for line in trace.read_text().splitlines()]
    wire = [timed for timed in wire if timed.at_ns - wire[0].at_ns <= options.seconds * 1e9]
    print(f"{len(wire)} VELOCITY in {options.seconds:g} s, every byte decoded; stops: {len(stops)}")
    for event in stops:
        print("  ", event["event"])
    heading()
    print(row("gap between VELOCITY at the far end", gaps(wire_ns := [timed.at_ns for timed in wire])))
    arrived = dict(zip((timed.frame.number("cycle") for timed in wire), wire_ns, strict=True))
    table = [dict(zip(rows[0], map(int, values), strict=True)) for values in rows[1:]]
    frames = [entry for entry in table if not entry["hold"] and entry["written_ns"] and entry["cycle"] in arrived]
    whole = [(arrived[entry["cycle"]] - entry["captured_ns"]) / MS for entry in frames]
    inference = [(entry["d2h_ns"] - entry["compute_ns"]) / MS for entry in frames]
    print(row("frame's capture to far end", whole))
    print(row("  of it the network", inference))
    print(row("  without the network", [a - b for a, b in zip(whole, inference, strict=True)]))
    wrote = [(arrived[entry["cycle"]] - entry["written_ns"]) / MS for entry in frames]
    print(row("  of it the pty, written to read", wrote))
    seen = [entry["captured_ns"] - entry["arrived_ns"] for entry in frames]
    beside = [a - b + c / MS for a, b, c in zip(whole, inference, seen, strict=True)]
    print(row("frame's arrival to far end, without the network", beside))
    captured = sorted({entry["captured_ns"] for entry in table if not entry["hold"]})
    print(row("capture time to the next one", gaps(captured)))
    show_seams(table)


def gaps(times_ns: Sequence[int]) -> list[float]:
    """Milliseconds from each time to the next."""
    return [(b - a) / MS for a, b in itertools.pairwise(times_ns)]


def show_seams(table: list[dict[str, int]]) -> None:
    """The frames before and after the clip's end, where a careless source would repeat or jump."""
    frames = [entry for entry in table if not entry["hold"]]
    for a, b in itertools.pairwise(frames):
        if b["frame"] < a["frame"]:
            step_ms = (b["captured_ns"] - a["captured_ns"]) / MS
            print(f"seam: frame {a['frame']} then frame {b['frame']}, captured {step_ms:.2f} ms later")


def stops(options: argparse.Namespace) -> None:
    """Freeze the policy process while the robot drives, again and again."""
    since_ms: list[float] = []
    with tempfile.TemporaryDirectory() as folder, Rig(Path(folder), scene(None), pace=REAL) as rig:
        rig.start_driving()
        for number in range(options.tries):
            before = len(rig.read_wire())
            rig.wait_for("VELOCITY", after=before, count=10)
            pid = rig.policy_pid()
            before = len(rig.read_wire())
            freeze(pid)
            rig.wait_for("STOP", after=before)
            thaw(pid)
            since_ms.append(stop_time_ms(rig))
            rig.wait_for("ARM", after=before)
            print(f"\r{number + 1}/{options.tries}", end="", flush=True)
        events = [event for event in rig.events("stop") if event["reason"] == "deadline_missed"]
    print(f"\n{len(events)} stops for {options.tries} freezes")
    heading()
    print(row("last VELOCITY to STOP, at the far end", since_ms))
    print(row("deadline to STOP, by the gate's clock", [float(str(event["late_us"])) / 1000 for event in events]))


def orphan(options: argparse.Namespace) -> None:
    """Kill the gate while the robot drives; the controller has to stop by itself, the policy process has to end."""
    ended_ms: list[float] = []
    for _ in range(options.tries):
        with tempfile.TemporaryDirectory() as folder, Rig(Path(folder), scene(None), pace=REAL) as rig:
            rig.start_driving()
            rig.wait_for("VELOCITY", count=25)
            pid = rig.policy_pid()
            killed_ns = time.monotonic_ns()
            os.kill(rig.pid, signal.SIGKILL)
            rig.wait_until(lambda pid=pid: gone(pid), "end of the policy process")
            ended_ms.append((time.monotonic_ns() - killed_ns) / MS)
    heading()
    print(row("gate killed to policy process gone", ended_ms))


def load(options: argparse.Namespace) -> None:
    """Drive to the cup in simulation; how much of one core each process takes meanwhile."""
    with tempfile.TemporaryDirectory() as folder, Rig(Path(folder), SIMULATED, pace=REAL, port="sim://") as rig:
        for number in range(options.tries):
            rig.start("--seed", str(number))
            rig.wait_until(lambda: "armed: driving" in rig.said(), "start of the drive")
            time.sleep(1)
            began, before = time.monotonic(), cpu_seconds(rig.pid)
            time.sleep(5)
            took, after = time.monotonic() - began, cpu_seconds(rig.pid)
            shares = {name: 100 * (after[name] - before[name]) / took for name in before}
            print(
                f"{'percent of one core':<22}{sum(shares.values()):6.1f}", *(f"{n} {v:.1f}" for n, v in shares.items())
            )
            rig.wait()
            stops = [str(event["event"]) for event in rig.events("stop") if event["reason"] != "shutdown"]
            print(f"room {number}: {len(stops)} stops", *stops)


def cpu_seconds(gate_pid: int) -> dict[str, float]:
    """Processor time so far of the gate and of each process that it started, by module."""
    seconds = {}
    children = Path(f"/proc/{gate_pid}/task/{gate_pid}/children").read_text().split()
    for pid in [str(gate_pid), *children]:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        name = next((word.removeprefix("mvla_daemon.") for word in words if word.startswith("mvla_daemon.")), "gate")
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        seconds[name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(required=True)
    one = what.add_parser("drive")
    one.add_argument("--seconds", type=float, default=60)
    one.add_argument("--clip", type=Path)
    one.add_argument("--sim", action="store_true")
    one.set_defaults(measure=drive)
    for name, measure, tries in (("stops", stops, 100), ("orphan", orphan, 10), ("load", load, 3)):
        one = what.add_parser(name)
        one.add_argument("--tries", type=int, default=tries)
        one.set_defaults(measure=measure)
    options = parser.parse_args()
    options.measure(options)


if __name__ == "__main__":
    main()
