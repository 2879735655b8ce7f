"""What was found, for eyes (80 columns) and for programs."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence

from mvla_daemon import __version__
from mvla_daemon.doctor.finding import Finding, Level

WIDTH = 80
_MARKS = {Level.OK: "ok", Level.NOTE: "note", Level.PROBLEM: "PROBLEM"}


def as_text(found: Mapping[str, Sequence[Finding]]) -> str:
    """Groups under headings; a fix stands apart, and where it takes two lines they are the shell's, to be copied."""
    lines = []
    for group, findings in found.items():
        lines += ["", group]
        for finding in findings:
            lines += _wrapped(finding.text, f"  {_MARKS[finding.level]:<8}{finding.name:<12} ")
            if finding.fix:
                *most, last = _wrapped(finding.fix, " " * 10 + "fix: ", WIDTH - 2)
                lines += [*(f"{line} \\" for line in most), last]
    return "\n".join([*lines[1:], "", _summary(found)])


def _wrapped(text: str, head: str, width: int = WIDTH) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _summary(found: Mapping[str, Sequence[Finding]]) -> str:
    counts = _counts(found)
    problems, notes = counts[Level.PROBLEM], counts[Level.NOTE]
    return (
        f"{problems} problem{'' if problems == 1 else 's'}, {notes} note{'' if notes == 1 else 's'}, "
        f"{counts[Level.OK]} ok. No serial port was opened and nothing was moved."
    )


def _counts(found: Mapping[str, Sequence[Finding]]) -> dict[Level, int]:
    levels = [finding.level for findings in found.values() for finding in findings]
    return {level: levels.count(level) for level in Level}


def as_json(found: Mapping[str, Sequence[Finding]]) -> str:
    """One object: the version, how many findings of each level, and the findings in order."""
    return json.dumps(
        {
            "version": __version__,
            "counts": {level.value: count for level, count in _counts(found).items()},
            "findings": [
                {"group": group, "name": one.name, "level": one.level.value, "text": one.text, "fix": one.fix}
                for group, findings in found.items()
                for one in findings
            ],
        }
    )
