"""The trace of a run: one line of CSV for each cycle that both processes have told of."""

from __future__ import annotations

from contextlib import suppress
from typing import IO

from mvla_daemon.ops.statistics import Matched

COLUMNS = (
    "epoch,cycle,hold,frame,captured_ns,arrived_ns,started_ns,preprocess_ns,h2d_ns,compute_ns,d2h_ns,"
    "postprocess_ns,sent_ns,received_ns,deadline_ns,written_ns"
)


class Trace:
    """Ends at the first error: one with a hole in it would be worse than a short one."""

    def __init__(self, file: IO[str]) -> None:
        self._file: IO[str] | None = file
        file.write(COLUMNS + "\n")

    def add(self, cycle: Matched) -> str:
        """One more cycle; why the trace ends here, if it does so now."""
        if self._file is None:
            return ""
        try:
            self._file.write(_line(cycle))
        except OSError as error:
            self.close()
            return str(error.strerror)
        return ""

    def close(self) -> None:
        """Write down what is not yet."""
        file, self._file = self._file, None
        with suppress(OSError):
            file.close() if file is not None else None


def _line(cycle: Matched) -> str:
    p, g = cycle.policy, cycle.gate
    values = (
        *(p.epoch, p.cycle, int(p.hold), p.frame, p.captured_ns, p.arrived_ns, p.started_ns, p.preprocess_ns),
        *(p.h2d_ns, p.compute_ns, p.d2h_ns, p.postprocess_ns, p.sent_ns, g.received_ns, g.deadline_ns, g.written_ns),
    )
    return ",".join(map(str, values)) + "\n"
