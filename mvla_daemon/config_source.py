"""Where a configuration's values come from: the file, the line of each key in it, and the `--set` overrides."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

from mvla_daemon.errors import DaemonError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

KeyPath: TypeAlias = tuple[str, ...]
"""A key with the tables that it stands in: `("limits", "linear_x", "max")`."""

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_OVERRIDE = re.compile(r"\s*([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)+)\s*=(.*)", re.DOTALL)
_POSITION = re.compile(r" \(at line (\d+), column (\d+)\)")
_TOKEN = re.compile(
    r'''
      """(?:\\.|[^\\])*?"{3,5} | \'\'\'.*?\'{3,5}   # strings over several lines
    | "(?:\\.|[^"\\])*" | '[^']*'                   # strings on one line
    | \#[^\n]*                                      # a comment
    | [\n\[\]{}=,]
    | \d{4}-\d\d-\d\d[ ]\d\d:[^\s\#\]},]*           # a date and time with a space between them
    | [^\s"'\#\[\]{}=,]+                            # everything else that is one word
    ''',
    re.DOTALL | re.VERBOSE,
)


def dotted(key: KeyPath) -> str:
    """The key as TOML writes it, on one line whatever is in it."""
    return ".".join(part if _BARE_KEY.fullmatch(part) else repr(part) for part in key)


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line, counted from 1, where each table and key of a valid TOML text first stands."""
    return _KeyScanner(text).document()


class _KeyScanner:
    """Walks over a valid TOML text and notes where its keys are; values are only skipped."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = [token for token in _TOKEN.finditer(text) if not token[0].startswith("#")]
        self._at = 0
        self._lines: dict[KeyPath, int] = {}

    def document(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        while self._at < len(self._tokens):
            if self._skip("\n"):
                continue
            if self._skip("["):
                self._skip("[")
                table = self._key((), "]")
                self._skip("]")
            else:
                self._value(self._key(table, "="))
        return self._lines

    def _skip(self, characters: str) -> bool:
        """Whether the next token was one of these characters; it is then behind us."""
        found = self._tokens[self._at][0] in characters if self._at < len(self._tokens) else False
        self._at += found
        return found

    def _key(self, table: KeyPath, end: str) -> KeyPath:
        """The key from here to the token `end`, which is skipped; TOML's own parser reads its dots and quotes."""
        first = self._tokens[self._at]
        while self._tokens[self._at][0] != end:
            self._at += 1
        node: Any = tomllib.loads(self._text[first.start() : self._tokens[self._at].start()] + "=0")
        self._at += 1
        line = self._text.count("\n", 0, first.start()) + 1
        key = table
        while isinstance(node, dict):
            ((name, node),) = node.items()
            key = (*key, name)
            self._lines.setdefault(key, line)
        return key

    def _value(self, key: KeyPath) -> None:
        if self._skip("{"):
            while not self._skip("}"):
                if not self._skip(",\n"):
                    self._value(self._key(key, "="))
        elif self._skip("["):
            while not self._skip("]"):
                if not self._skip(",\n"):
                    self._value(key)
        else:
            self._at += 1


@dataclass(slots=True)
class ConfigSource:
    """The values of a configuration, where each was given, and what was found wrong with them."""

    file: Path
    table: dict[str, Any]
    lines: dict[KeyPath, int]
    overridden: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[tuple[float, str]] = field(default_factory=list)
    """Line (infinity for an override) and the whole text of each problem."""

    @classmethod
    def read(cls, file: Path, overrides: Sequence[str]) -> ConfigSource:
        """The file's values with the overrides laid over them; raises DaemonError when there is no TOML to read.

        A wrong override is noted in `problems`, so that it is shown together with all the others.
        """
        text = _read_text(file)
        try:
            source = cls(file, tomllib.loads(text), key_lines(text))
        except RecursionError:
            raise _refusal(f"{file}:1: brackets are nested too deeply; a configuration needs two levels") from None
        except ValueError as error:
            raise _syntax_error(file, text, str(error)) from None
        for override in overrides:
            source._override(override)
        return source

    def refuse(self, key: KeyPath, sentence: str, *, missing: bool = False) -> None:
        """Note a problem with a key, `FILE:LINE: section.key: sentence`; a missing one is at its table's line."""
        parents = [key[:length] for length in range(len(key), 0, -1)]
        by_override = next((parent for parent in parents if parent in self.overridden and not missing), None)
        by_line = next((parent for parent in parents if parent in self.lines), None)
        if by_override is not None:
            given = self.overridden[by_override]
            named = "" if given == dotted(key) else f"{dotted(key)}: "
            self.problems.append((float("inf"), f"--set {given}: {named}{sentence}"))
        else:
            line = 1 if by_line is None else self.lines[by_line]
            self.problems.append((line, f"{self.file}:{line}: {dotted(key)}: {sentence}"))

    def first_given(self, keys: Sequence[KeyPath]) -> KeyPath:
        """The key to blame among several that don't go together: an overridden one, one in the file, the first."""
        for given in (self.overridden, self.lines):
            for key in keys:
                if key in given:
                    return key
        return keys[0]

    def raise_problems(self) -> None:
        """Raise all problems, one a line in the order of the file, as one DaemonError; nothing when there are none."""
        if self.problems:
            ordered = sorted(self.problems, key=lambda problem: problem[0])
            raise _refusal("\n".join(text for _, text in ordered))

    def _override(self, override: str) -> None:
        found = _OVERRIDE.fullmatch(override)
        if found is None:
            sentence = "is not section.key=value, for example --set control.rate_hz=30"
            self.problems.append((float("inf"), f"--set {override!r}: {sentence}"))
            return
        name, text = found.groups()
        key = tuple(name.split("."))
        table = self.table
        for depth, part in enumerate(key[:-1], start=1):
            if part not in table:
                self.overridden[key[:depth]] = name
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                wrong = f"--set {name}: {dotted(key[:depth])} is a value, not a table with keys"
                self.problems.append((float("inf"), wrong))
                return
        table[key[-1]] = _toml_value(text)
        for known in (self.lines, self.overridden):
            for old in [old for old in known if old[: len(key)] == key]:
                del known[old]
        self.overridden[key] = name


def _read_text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")  # editors on Windows put a mark before the first line
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise _refusal(f"{file}:{line}: is not UTF-8 text; save the file as UTF-8") from None
    except OSError as error:
        sentence = f"cannot be read ({error.strerror}); name the configuration file with --config FILE"
        raise _refusal(f"{file}: {sentence}") from None


def _refusal(text: str) -> DaemonError:
    return DaemonError(text, ExitCode.CONFIG)


def _syntax_error(file: Path, text: str, message: str) -> DaemonError:
    """TOML's own message with its position brought into the form of all the others."""
    position = _POSITION.search(message)
    line = int(position[1]) if position else text.count("\n") + 1
    what = _POSITION.sub(f", at column {position[2]}" if position else "", message)
    return _refusal(f"{file}:{line}: is not valid TOML: {what}")


def _toml_value(text: str) -> Any:
    """The value that `text` is in TOML, or the text itself, so that a path or a word needs no quotes."""
    try:
        parsed: dict[str, Any] = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text.strip()
    return parsed["value"] if len(parsed) == 1 else text.strip()
