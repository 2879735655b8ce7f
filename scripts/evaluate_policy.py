"""Evaluates the policy of a simulator's configuration: seeded drives through the daemon's own gate, and controls.

    python scripts/evaluate_policy.py --config config.toml --out build/evaluation       100 seeds, half an hour of CPU
    python scripts/evaluate_policy.py --config config.toml --out build/try --seeds 0:10 --real-time 1

A seed is a room, its light, and a sentence of those that the policy knows. Each is driven in simulated time by the
policy; with its camera black; straight ahead; and with a sentence of the other side, which counts as reached only past
the box on that other side. Then come drives by the whole daemon in real time, one by one: leave the machine alone
meanwhile. Seeds below 100,000 are in no training. The first seed is driven twice, to compare the bytes to the motors.

Writes evaluation.json and the pictures of all ways to the folder of --out. It reports and does not judge, but for
--check. Needs `pip install 'mvla-daemon[sim]'`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from evaluate_drives import CONTROLS, Ended, Kind, drive_in_lockstep, told
from evaluate_real_time import drive_in_real_time
from evaluate_report import Rows, as_json, checks, model_sha256, policy_name, seeds_name, table, title

from mvla_daemon.config_load import load_config
from mvla_daemon.errors import DaemonError, ExitCode
from mvla_daemon.sim.drive import Drive
from mvla_daemon.sim.drives_picture import draw_drives
from mvla_daemon.sim.instructions import SENTENCES
from mvla_daemon.sim.lockstep_run import load_thinker

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from mvla_daemon.config import Config
    from mvla_daemon.engines.manifest import Manifest

_Thing = TypeVar("_Thing")
_MOST_SEEDS = 100_000
"""What is above is for training."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Drive, report, and judge where asked to; the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return _evaluate(options)
    except DaemonError as error:
        print(f"\nevaluate_policy: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return ExitCode.TRY_AGAIN


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="a configuration of the simulated robot")
    parser.add_argument("--out", type=Path, required=True, help="the folder for evaluation.json and the pictures")
    parser.add_argument("--seeds", type=_seeds, default=range(100), metavar="A:B", help="from A to before B (0:100)")
    parser.add_argument("--real-time", type=_count, default=10, metavar="N", help="so many seeds in real time too (10)")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--jobs", type=_jobs, default=cores, help=f"processes that drive at once ({cores})")
    parser.add_argument("--check", action="store_true", help="end with 1 unless the project's thresholds hold")
    return parser


def _seeds(text: str) -> range:
    first, _, end = text.partition(":")
    seeds = range(int(first), int(end))
    if not 0 <= seeds.start < seeds.stop <= _MOST_SEEDS:
        raise argparse.ArgumentTypeError(f"must be A:B with 0 <= A < B <= {_MOST_SEEDS}")
    return seeds


def _count(text: str) -> int:
    if int(text) < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return int(text)


def _jobs(text: str) -> int:
    return max(1, _count(text))


def _evaluate(options: argparse.Namespace) -> int:
    config, manifest = _load(options.config)
    _make_folder(options.out)
    seeds, kinds = options.seeds, (Kind.POLICY, *CONTROLS)
    about = f"policy {policy_name(manifest)}, model's sha256 {model_sha256(manifest)}"
    print(f"{about}, {seeds_name(seeds)}", flush=True)

    tasks = [(Kind.POLICY, seeds[0]), *((kind, seed) for kind in kinds for seed in seeds)]
    (again, _), *driven = _drive_all(config, tasks, options.jobs)
    rows: Rows = {kind: [ended for ended, _ in driven if ended.kind is kind] for kind in kinds}
    if options.real_time:
        rows[Kind.REAL_TIME] = list(_drive_in_real_time(config, seeds[: options.real_time]))
    text = json.dumps(as_json(manifest, rows, again), indent=1)
    (options.out / "evaluation.json").write_text(f"{text}\n")
    for kind in kinds:
        name = "drives" if kind is Kind.POLICY else f"drives_{kind.value.replace(' ', '_')}"
        drives = [drive for ended, drive in driven if ended.kind is kind]
        draw_drives(drives, options.out / f"{name}.png", title(kind, manifest, seeds))

    print(table(rows))
    repeats = again.wire_sha256 == rows[Kind.POLICY][0].wire_sha256
    same = "the same bytes" if repeats else "OTHER BYTES"
    print(f"seed {again.seed} driven twice in simulated time: {same} to the motors, sha256 {again.wire_sha256}")
    return _judge(rows, repeats=repeats) if options.check else ExitCode.OK


def _load(path: Path) -> tuple[Config, Manifest]:
    """What is driven; raises DaemonError for everything that would otherwise go wrong half an hour later."""
    config = load_config(path, ['safety.arm="auto"'])
    if not (config.simulated and config.camera.is_simulated):
        raise DaemonError(f'{path}: set camera.source and motor.port to "sim://"', ExitCode.CONFIG)
    if find_spec("matplotlib") is None:
        raise DaemonError("The pictures of the drives need pip install 'mvla-daemon[sim]'", ExitCode.UNAVAILABLE)
    manifests = [load_thinker(told(config, sentence))[0] for sentence in SENTENCES]
    return config, manifests[0]


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sentence = f"--out {path} has to be a folder that you may write to ({error.strerror})"
        raise DaemonError(sentence, ExitCode.NO_PERMISSION) from error


def _drive_all(config: Config, tasks: list[tuple[Kind, int]], jobs: int) -> list[tuple[Ended, Drive]]:
    """All drives in simulated time, on so many processes, in the order of the tasks."""
    # A worker that was forked from a process with threads could hang.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as workers:
        futures = [workers.submit(drive_in_lockstep, config, kind, seed) for kind, seed in tasks]
        try:
            for future in _counted(as_completed(futures), len(futures), "drives in simulated time"):
                future.result()
        except BaseException:
            workers.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in futures]


def _drive_in_real_time(config: Config, seeds: range) -> Iterator[Ended]:
    drives = (drive_in_real_time(config, seed) for seed in seeds)
    return _counted(drives, len(seeds), "drives in real time")


def _counted(things: Iterable[_Thing], total: int, name: str) -> Iterator[_Thing]:
    """The same things, with one line on standard error that counts them."""
    began_s = time.monotonic()
    for done, thing in enumerate(things, start=1):
        left_s = (time.monotonic() - began_s) / done * (total - done)
        print(f"\r{done} of {total} {name}, {left_s / 60:.0f} minutes left  ", end="", file=sys.stderr, flush=True)
        yield thing
    print(file=sys.stderr)


def _judge(rows: Rows, *, repeats: bool) -> int:
    judged = list(checks(rows, repeats=repeats))
    for holds, sentence in judged:
        print(f"{'holds ' if holds else 'BROKEN'}  {sentence}")
    return 0 if all(holds for holds, _ in judged) else 1


if __name__ == "__main__":
    sys.exit(main())
