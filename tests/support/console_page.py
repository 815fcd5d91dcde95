"""What a page tells its reader to type, and what it says that he then sees.

Blocks are ```console: lines that begin with `$ ` are typed on the host, with `pi$ ` on the device, and what follows is
what is shown. `...` stands for anything within a line; as a line of its own, for any lines. Where nothing is shown,
nothing must be. Blocks of ```python begin with the file's name in a comment. There are no other blocks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PROMPT = re.compile(r"^(pi)?\$ (.*)$")
_FILE = re.compile(r"^# (\w+\.py)\n")


@dataclass(frozen=True)
class Command:
    """Something typed."""

    line: int
    on_device: bool
    typed: str
    shown: tuple[str, ...]


@dataclass(frozen=True)
class File:
    """Something written in an editor, in the folder where the reader is."""

    line: int
    name: str
    text: str


def read_page(page: Path) -> list[Command | File]:
    """Every fenced block, in order.

    Raises:
        ValueError: a block is none of those above.
    """
    text = page.read_text()
    if text.count("\n```") % 2:
        raise ValueError(f"{page.name}: a block has no end")
    steps: list[Command | File] = []
    for block in _FENCE.finditer(text):
        language, body = block.groups()
        line = text.count("\n", 0, block.start(2)) + 1
        if language == "console":
            steps += _commands(body.splitlines(), line, page.name)
        elif language == "python" and (named := _FILE.match(body)):
            steps.append(File(line, named[1], body))
        else:
            raise ValueError(f"{page.name}, line {line}: a block of {language or 'nothing'} that nobody could follow")
    return steps


def _commands(lines: list[str], first: int, name: str) -> list[Command]:
    found: list[tuple[int, bool, list[str], list[str]]] = []
    for number, text in enumerate(lines, start=first):
        if found and not found[-1][3] and found[-1][2][-1].endswith("\\"):
            found[-1][2].append(text)
        elif typed := _PROMPT.match(text):
            found.append((number, bool(typed[1]), [typed[2]], []))
        elif found:
            found[-1][3].append(text)
        else:
            raise ValueError(f"{name}, line {number}: expected `$ ` or `pi$ `, found {text!r}")
    return [Command(number, there, "\n".join(typed), tuple(shown)) for number, there, typed, shown in found]


def difference(shown: tuple[str, ...], said: str) -> str:
    """How what was said is not what the page shows; empty: it is."""
    lines = [line.rstrip() for line in said.splitlines()]
    if _matches(shown, lines):
        return ""
    good = max(n for n in range(len(shown) + 1) if _matches((*shown[:n], "..."), lines))
    missing = shown[good] if good < len(shown) else "the end"
    return f"not there, or not where it should be: {missing}\nsaid:\n" + "\n".join(lines)


def _matches(shown: tuple[str, ...], lines: list[str]) -> bool:
    parts = [
        r"(?:.*\n)*?" if one.strip() == "..." else r".*?".join(map(re.escape, one.rstrip().split("..."))) + r"\n"
        for one in shown
    ]
    return re.fullmatch("".join(parts), "".join(f"{line}\n" for line in lines)) is not None
