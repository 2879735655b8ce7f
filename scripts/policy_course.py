"""The whole training: who drives where in which round, and how long is learnt from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

from policy_data import check
from policy_frames import Frames, Task, collect, join
from policy_learning import Teacher, make_repeatable
from policy_network import Network, to_onnx
from tqdm import tqdm

from mvla_daemon.core.messages import SECOND
from mvla_daemon.sim.world import TIMEOUT_NS

TRAINING_ROOMS = range(1_000_000, 2_000_000)
"""Each training seed has its own ten thousand."""
HELD_OUT_ROOMS = range(2_000_000, 3_000_000)
"""For the errors on frames."""
CHECKING_ROOMS = range(3_000_000, 4_000_000)
"""For the drives at the end. Rooms 0 to 99,999 are used nowhere here: they are for judging the policy."""
_ROOMS_A_SEED = 10_000
_KEPT_OF_EXPERT, _KEPT_OF_LEARNER = 0.12, 0.4
_LEARNER_DISTURBANCE = 0.5

One, Other = TypeVar("One"), TypeVar("Other")


@dataclass(frozen=True, slots=True)
class Scale:
    """How many rooms (two drives each) and how many batches."""

    expert_rooms: int
    expert_steps: int
    rounds: int
    learner_rooms: int
    learner_steps: int
    last_steps: int
    held_out_rooms: int
    checked_rooms: int
    longest_ns: int = TIMEOUT_NS
    """After it a drive ends as it is, still running."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What a course ends with."""

    model: bytes
    teacher: Teacher
    frames: int
    ended: Counter[str]
    """How the drives at the end ended."""


SCALES = {
    "full": Scale(
        expert_rooms=800,
        expert_steps=900,
        rounds=3,
        learner_rooms=80,
        learner_steps=400,
        last_steps=1600,
        held_out_rooms=100,
        checked_rooms=20,
    ),
    "small": Scale(
        expert_rooms=4,
        expert_steps=10,
        rounds=1,
        learner_rooms=1,
        learner_steps=5,
        last_steps=10,
        held_out_rooms=2,
        checked_rooms=1,
        longest_ns=2 * SECOND,
    ),
}


class Course:
    """One training, from nothing to a policy; `workers` drive, `scratch` is a folder for the models they drive with."""

    def __init__(self, scale: Scale, seed: int, threads: int, workers: Executor, scratch: Path) -> None:
        self._scale = scale
        self._seed = seed
        self._workers = workers
        self._scratch = scratch
        self._fresh_rooms = iter(TRAINING_ROOMS[seed * _ROOMS_A_SEED : (seed + 1) * _ROOMS_A_SEED])
        make_repeatable(seed, threads)

    def run(self) -> Trained:
        """Train and check; the same seed, the same bits."""
        scale = self._scale
        held_out = self._collect("held-out drives", self._expert_drives(HELD_OUT_ROOMS[: scale.held_out_rooms]))
        teacher = Teacher(Network(), held_out, self._seed)
        frames = self._collect("drives of the expert", self._expert_drives(self._rooms(scale.expert_rooms)))
        self._learn(teacher, "the expert's drives", frames, scale.expert_steps)
        for number in range(1, scale.rounds + 1):
            model = self._save(f"round{number}.onnx", teacher)
            rooms = self._rooms(scale.learner_rooms)
            drives = [Task(room, _KEPT_OF_LEARNER, model, _LEARNER_DISTURBANCE, scale.longest_ns) for room in rooms]
            frames = join([frames, self._collect(f"drives of round {number}", drives)])
            steps = scale.last_steps if number == scale.rounds else scale.learner_steps
            self._learn(teacher, f"round {number}", frames, steps)
        model = self._save("last.onnx", teacher)
        checked = partial(check, model, scale.longest_ns)
        checks = self._each("checking drives", checked, CHECKING_ROOMS[: scale.checked_rooms])
        ended = Counter(outcome.value for both in checks for outcome in both)
        tqdm.write(f"checking drives, commands at 50 Hz: {_listed(ended)}")
        return Trained(model.read_bytes(), teacher, len(frames), ended)

    def _rooms(self, count: int) -> list[int]:
        """As many more rooms to learn in."""
        return list(islice(self._fresh_rooms, count))

    def _expert_drives(self, rooms: Sequence[int]) -> list[Task]:
        return [Task(room, _KEPT_OF_EXPERT, longest_ns=self._scale.longest_ns) for room in rooms]

    def _save(self, name: str, teacher: Teacher) -> Path:
        path = self._scratch / name
        path.write_bytes(to_onnx(teacher.network))
        return path

    def _collect(self, name: str, tasks: Sequence[Task]) -> Frames:
        collected = self._each(name, collect, tasks)
        frames = join([part for part, _ in collected])
        ended = Counter(outcome.value for _, outcomes in collected for outcome in outcomes)
        tqdm.write(f"{name}: {len(frames)} frames; {_listed(ended)}")
        return frames

    def _each(self, name: str, work: Callable[[One], Other], items: Sequence[One]) -> list[Other]:
        """The results in the order of the items, whichever is done first."""
        return list(tqdm(self._workers.map(work, items), name, len(items), disable=None))

    def _learn(self, teacher: Teacher, name: str, frames: Frames, steps: int) -> None:
        with tqdm(desc=f"learning from {name}", total=steps, disable=None) as bar:
            teacher.phase(name, frames, steps, bar.update)
        tqdm.write(f"learnt from {name}: held-out loss {teacher.curve.held_out[-1][1]:.4f} after {steps} batches")


def _listed(ended: Counter[str]) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in ended.most_common())
