"""Trains the policy that ships as `bundled:cup`: in the simulator, from its expert, on a CPU.

    python scripts/train_policy.py                   about half an hour on two idle cores
    python scripts/train_policy.py --scale small --out /tmp/cup --report /tmp/cup     a try-out of seconds

First the expert drives, disturbed, and the network learns what it would do. Then the network drives, the expert says
what it should have done, and the network learns from all frames so far (DAgger: Ross, Gordon and Bagnell, AISTATS
2011). The same seed gives the same weights on the same machine with the same number of threads. Nothing is written
before the end. Needs `pip install 'mvla-daemon[train]'`.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import signal
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Read the command line, train, and put the files in their places."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "mvla_daemon" / "bundled" / "cup", help="for the policy")
    parser.add_argument("--report", type=Path, default=ROOT / "docs", help="for training.json and training.png")
    parser.add_argument("--seed", type=int, default=1, help="of the weights, the batches and the rooms (0 to 99)")
    parser.add_argument("--scale", choices=("full", "small"), default="full", help="small learns nothing of use")
    parser.add_argument("--threads", type=int, default=2, help="for training, and as many processes that drive")
    options = parser.parse_args()
    if not 0 <= options.seed <= 99 or options.threads < 1:
        parser.error("--seed is 0 to 99, --threads at least 1")
    if any(find_spec(name) is None for name in ("torch", "onnx", "matplotlib", "tqdm", "cv2")):
        sys.exit("Training needs more than driving does: pip install 'mvla-daemon[train]'")
    from policy_course import SCALES, Course  # noqa: PLC0415 - only once torch is known to be there
    from policy_report import policy_files, report_files  # noqa: PLC0415 - likewise

    began_s = time.monotonic()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # so that `| tee` shows each line when it is told
    # A worker that was forked from a process with torch's threads could hang.
    spawn = multiprocessing.get_context("spawn")
    try:
        with (
            tempfile.TemporaryDirectory() as scratch,
            ProcessPoolExecutor(options.threads, spawn, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as workers,
        ):
            try:
                trained = Course(SCALES[options.scale], options.seed, options.threads, workers, Path(scratch)).run()
            except KeyboardInterrupt:
                workers.shutdown(wait=False, cancel_futures=True)
                raise
        run = {"scale": options.scale, "seed": options.seed, "threads": options.threads}
        report = report_files(trained, run, seconds=time.monotonic() - began_s)
        policy = policy_files(trained.model)
        put(options.report, report)
        put(options.out, policy)
    except KeyboardInterrupt:
        sys.exit("\nStopped; nothing was written.")
    except OSError as error:
        sys.exit(f"The policy cannot be written: {error}")
    print(f"Wrote {', '.join(policy)} to {options.out} and {', '.join(report)} to {options.report}")


def put(folder: Path, files: dict[str, bytes]) -> None:
    """Write all files beside their places, then put each in its place, the last one (which names the others) last."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as fresh:
        for name, content in files.items():
            (Path(fresh) / name).write_bytes(content)
        for name in files:
            (Path(fresh) / name).replace(folder / name)


if __name__ == "__main__":
    main()
