"""What was published of the policies that users bring, and what it was measured on: put beside every measured row."""

from __future__ import annotations

from dataclasses import dataclass

CYCLE_MS = 20.0
"""Of the published control cycle, and this daemon's deadline."""
SURROGATE_PARAMETERS = 438_997_250
MEASURED_ON = (
    "measured on latency-surrogate with fresh random weights, PyTorch, batch 1, input already on the GPU, mean of 30 "
    "runs after 3; no camera, no copies"
)


@dataclass(frozen=True, slots=True)
class Published:
    """Latencies and GPU memory as they were claimed for one network, and how many parameters it has."""

    parameters: int
    fp32_ms: float
    fp16_ms: float
    speed_up: float
    fp32_mb: float | None = None
    fp16_mb: float | None = None
    note: str = ""

    def latency_ms(self, precision: str) -> float:
        """What was published for this precision."""
        return self.fp16_ms if precision == "FP16" else self.fp32_ms

    def lines(self, parameters: int | None) -> list[str]:
        """The claim, what it was, and the arithmetic behind it; `parameters` is how many the file at hand has."""
        memory = ""
        if self.fp32_mb is not None and self.fp16_mb is not None:
            memory = f"; GPU memory {self.fp32_mb:g} -> {self.fp16_mb:g} MB (the surrogate's weights)"
        share = 100 * self.fp16_ms / CYCLE_MS
        rate_tb = 4 * SURROGATE_PARAMETERS / self.fp32_ms / 1e9
        claim = f"published: {self.fp32_ms:g} ms FP32, {self.fp16_ms:g} ms FP16, {self.speed_up:g}x{memory}"
        what_it_was = f"published, what it was: {MEASURED_ON}" + (f"; {self.note}" if self.note else "")
        arithmetic = (
            f"published, arithmetic: {self.fp16_ms:g} ms is {share:.1f} % of a {CYCLE_MS:g} ms cycle, in which no "
            f"program ran; {4 * SURROGATE_PARAMETERS / 1e9:.2f} GB of FP32 weights in {self.fp32_ms:g} ms is "
            f"{rate_tb:.1f} TB/s, a workstation GPU's memory, not a Jetson's"
        )
        lines = [claim, what_it_was, arithmetic]
        if parameters is not None and not _same(parameters, self.parameters):
            lines.append(
                f"published, another network: it has {self.parameters:,} parameters, the file here {parameters:,}"
            )
        return lines


_OTHER = "this network itself was never measured"
_KNOWN = {
    "latency-surrogate": Published(SURROGATE_PARAMETERS, 2.503, 1.306, 1.92, 2163, 1086),
    "kosmos2-clip-hybrid": Published(1_859_579_651, 2.503, 1.306, 1.92, 2163, 1086, _OTHER),
    "kosmos2-lstm": Published(1_703_973_122, 2.496, 1.324, 1.88, None, None, _OTHER),
}


def published_for(name: str, parameters: int | None) -> Published | None:
    """What was claimed for a policy, by its name or by the surrogate's number of parameters, which no other has."""
    spelled = name.lower().replace("_", "-")
    for key, claim in _KNOWN.items():
        if spelled.startswith(key):
            return claim
    if parameters is not None and _same(parameters, SURROGATE_PARAMETERS):
        return _KNOWN["latency-surrogate"]
    return None


def _same(counted: int, published: int) -> bool:
    """Whether a file has a network's parameters, and maybe constants (zeros, a table of positions) beside them.

    Kosmos-2 as it is exported here has 0.16 % of them.
    """
    return 0 <= counted - published <= published // 500
