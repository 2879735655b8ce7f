"""Which release of JetPack's Linux a Jetson runs."""

from __future__ import annotations

import re
from pathlib import Path

RELEASE = Path("/etc/nv_tegra_release")
_LINE = re.compile(r"# R(\d+) \(release\), REVISION: ([\d.]+)")


def jetpack_release(path: Path = RELEASE) -> str | None:
    """Jetson Linux as its release file has it, "R36.4.3" for example (JetPack 6.2); None on any other machine."""
    try:
        found = _LINE.match(path.read_text("utf-8", "replace"))
    except OSError:
        return None
    return f"R{found[1]}.{found[2]}" if found else None
