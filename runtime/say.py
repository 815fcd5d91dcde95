"""Printing, at the one place where it is done: what others wrote cannot steer a terminal.

Devices, brokers and packages name things and word their errors; all of it passes here on its way out.
"""

from __future__ import annotations

import logging
import re

import click

_UNSEEN = "?"
_COLOUR = re.compile(r"(\x1b\[[0-9;]*m)")


def printable(line: str) -> str:
    """One line, without what could steer a terminal."""
    return "".join(c if c.isprintable() else _UNSEEN for c in line)


def lines(text: str) -> str:
    """Several lines, without what could steer a terminal; tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else _UNSEEN for c in text.replace("\r\n", "\n"))


def json_text(data: bytes) -> str:
    """JSON that says the same, and in which whatever is not printable is escaped."""
    return "".join(c if c.isprintable() or c in "\n\t" else _escaped(c) for c in data.decode())


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def echo(message: object = "", *, err: bool = False, nl: bool = True, coloured: bool = False) -> None:
    """Print text, or JSON (or PEM) given as bytes.

    Args:
        message: what to print.
        err: on the channel of errors.
        nl: end the line.
        coloured: colours in it are ours; those in others' words were taken out where they were put together.
    """
    if isinstance(message, bytes):
        text = json_text(message)
    elif coloured:
        text = "".join(part if at % 2 else lines(part) for at, part in enumerate(_COLOUR.split(str(message))))
    else:
        text = lines(str(message))
    click.echo(text, err=err, nl=nl)


def in_place(line: str, *, done: bool = False) -> None:
    """A line of a terminal in the place of the one before it; `done`: the next takes another."""
    click.echo(f"\r\x1b[K{printable(line)}", err=True, nl=done)


class PrintableFormatter(logging.Formatter):
    """Of log records, which quote others, too."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        return lines(super().format(record))


def failure(message: str) -> click.ClickException:
    """What ends a command, shown as an error."""
    return click.ClickException(lines(message))
