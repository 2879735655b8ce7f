"""The sentences that the bundled policy knows, and the numbers that it sees in their place.

The numbers are signed feature hashing (Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", ICML
2009) of a sentence's words and of its pairs of neighbours. This is no language model and not CLIP: two sentences are
alike only as far as they share words, and one that is not listed here means nothing to the policy.
"""

from __future__ import annotations

import hashlib
import math
import re
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from mvla_daemon.errors import DaemonError, ExitCode
from mvla_daemon.sim.room import Side

WIDTH = 512
SENTENCES: dict[str, Side] = {
    "go to the cup, pass the box on its left": Side.LEFT,
    "drive to the cup and keep left of the box": Side.LEFT,
    "go left around the box to the cup": Side.LEFT,
    "pass the box with it on your right, then stop at the cup": Side.LEFT,
    "go to the cup, pass the box on its right": Side.RIGHT,
    "drive to the cup and keep right of the box": Side.RIGHT,
    "go right around the box to the cup": Side.RIGHT,
    "pass the box with it on your left, then stop at the cup": Side.RIGHT,
}
"""Each sentence, and the side of the box on which the robot then passes."""


def side_of(sentence: str) -> Side:
    """The side that a sentence of `SENTENCES` asks for; `DaemonError` for any other."""
    try:
        return SENTENCES[sentence]
    except KeyError:
        known = ", ".join(f'"{one}"' for one in SENTENCES)
        raise DaemonError(
            f'the instruction "{sentence}" is not one that the bundled policy knows; use one of: {known}',
            ExitCode.CONFIG,
        ) from None


def embedding(sentence: str) -> npt.NDArray[np.float32]:
    """The hashed words and pairs of a sentence: (512,) float32 of length 1; `ValueError` where it has no word.

    Case and punctuation do not count. Each word or pair adds 1 or -1 at a place, both taken from its SHA-256; their
    number is odd, so they never cancel out.
    """
    words = re.findall(r"\w+", sentence.lower())
    if not words:
        raise ValueError(f"an instruction needs at least one word, {sentence!r} has none")
    sums = np.zeros(WIDTH, np.float32)
    for feature in (*words, *(f"{one} {other}" for one, other in pairwise(words))):
        digest = hashlib.sha256(feature.encode()).digest()
        sums[int.from_bytes(digest[:4], "little") % WIDTH] += 1.0 if digest[4] & 1 else -1.0
    length = math.sqrt(sum(value * value for value in sums.tolist()))
    return (sums / length).astype(np.float32, copy=False)
