"""Which form of which network runs where: every cell is proven on the real interpreter, or refused with a reason.

python -m tests.zoo.forms            writes docs/forms.md
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from torch import nn

from ferryman.converter.api import compress
from ferryman.converter.backends import BACKENDS
from ferryman.converter.capture import Captured, capture
from ferryman.converter.forms import Form, find_form
from ferryman.converter.quiet import quiet
from ferryman.converter.source import make_source
from ferryman.converter.variants import Entry, called, lower_together
from ferryman.converter.verify import (
    Interpreter,
    References,
    interpreters,
    make_references,
    verify,
    with_program,
)
from ferryman.runtime.contracts.errors import FerrymanError
from ferryman.runtime.contracts.manifest import RuntimeName
from ferryman.runtime.package import SQNR_LEAST_DB
from ferryman.runtime.session import INTERPRETERS
from tests.support.interpreters import ROOT
from tests.zoo import models

NETWORKS = ("resnet20", "mobilenet_v2", "decoder", "lstm", "sentence_encoder")
FORMS = (
    *(
        "fp32",
        "int8",
        "int8-dynamic",
        "int8-blocks",
        "4bit",
        "4bit-blocks",
        "4bit-channel",
        "4bit-asym",
        "4bit-gptq",
        "2bit",
    ),
    *("mixed-4.5b", "binary"),
    *("sparse-80 as sparse", "sparse-80 as int8-sparse", "sparse-80 as 4bit-sparse"),
    *("pruned-50flops as fp32", "pruned-50flops as int8", "pruned-50flops as 4bit"),
    *("folded-2 as fp32", "folded-2 as 4bit", "merged as fp32"),
    *("lowrank-60bytes as fp32", "lowrank-60bytes as 4bit", "nested-50-100 as fp32", "nested-50-100 as 4bit"),
)
"""Forms of convert, or those of compress and what they are converted as."""
_REASON_CHARS = 160
_HEAD = """# Forms, networks, interpreters

Made by `python -m tests.zoo.forms`: small networks of the zoo (random weights, seeded), converted and run on the real
interpreters of one machine. A number is the SQNR in dB of the worst output to eager in float32 over the verification's
input sets; a network of random weights says how faithful a form is, not how accurate. What is sparse, pruned, folded,
of low rank or nested first, without training, is held to what it then is ([folding](folding.md) has what that costs in
accuracy). Of a nested network the number is that of its worst variant. What is refused has its reason below. An
artifact of a quantized form also equals the rounded program itself, or it would be refused.
"""


def cells(network: str) -> Iterator[tuple[str, str, str]]:
    """(form, interpreter, what became of it there)."""
    module, inputs = getattr(models, network)()[:2]
    for name in FORMS:
        first, _, last = name.rpartition(" as ")
        form = find_form(last)
        try:
            with quiet():
                programs = {entry: _program(made, inputs, form) for entry, made in _made(module, first, inputs).items()}
        except FerrymanError as error:
            yield from ((name, where, f"refused: {error}") for names in INTERPRETERS.values() for where in names)
            continue
        for runtime in BACKENDS:
            for where, found in _prove(programs, form, runtime):
                yield name, where, found


def _made(module: nn.Module, form: str, inputs: Any) -> Mapping[Entry, nn.Module]:
    """What compress makes of a network: one model, or several of one artifact."""
    if not form:
        return {None: module}
    made = compress(module, form, example=_positional(inputs))
    return made.variants or {None: made.model}


def _positional(inputs: Any) -> tuple[Any, ...]:
    return tuple(inputs.values()) if isinstance(inputs, dict) else tuple(inputs)


def _program(module: nn.Module, inputs: Any, form: Form) -> tuple[Captured, References]:
    """A model in a form of convert, and what it is held to."""
    captured = capture(make_source(module, inputs))
    references = make_references(captured)
    program, _ = form.rewrite(captured, [captured.example])
    return program, with_program(references, program) if form.rounds else references


def _prove(
    programs: Mapping[Entry, tuple[Captured, References]], form: Form, runtime: RuntimeName
) -> Iterator[tuple[str, str]]:
    places = interpreters(runtime)
    try:
        with quiet():
            lowered = lower_together(runtime, {entry: program for entry, (program, _) in programs.items()})
            fitted = next(iter(lowered.values()))
            if form.fit:
                ((program, _),) = programs.values()
                fitted = form.fit(program, runtime, places, fitted, lambda _: None).lowered
    except FerrymanError as error:
        yield from ((place.name, f"refused: {error}") for place in places)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{BACKENDS[runtime].suffix}"
        path.write_bytes(fitted.data)
        for place in places:
            try:
                least = min(
                    _sqnr_db(path, f"{runtime}-{called(form.name, entry)}", runtime, references, place, entry)
                    for entry, (_, references) in programs.items()
                )
                yield place.name, f"{least:.1f}"
            except FerrymanError as error:
                yield place.name, f"refused: {error}"


def _sqnr_db(
    path: Path, variant: str, runtime: RuntimeName, references: References, place: Interpreter, entry: Entry
) -> float:
    _, (proof,) = verify(path, variant, runtime, references, SQNR_LEAST_DB, [place], entry)
    return proof.sqnr_db


def document(found: dict[tuple[str, str, str], str]) -> str:
    """The page."""
    names = [name for runtime in BACKENDS for name in INTERPRETERS[runtime]]
    reasons: dict[str, int] = {}
    lines = [_HEAD, "| network | form | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for network in NETWORKS:
        for form in FORMS:
            row = []
            for name in names:
                cell = found[network, form, name]
                if cell.startswith("refused: "):
                    number = reasons.setdefault(" ".join(cell.split())[:_REASON_CHARS], len(reasons) + 1)
                    cell = f"refused ({number})"
                row.append(cell)
            lines.append(f"| {network} | {form} | " + " | ".join(row) + " |")
    lines += ["", *(f"{number}. {reason.removeprefix('refused: ')}" for reason, number in reasons.items()), ""]
    return "\n".join(lines)


def main() -> None:
    """Fill every cell and write the page."""
    found = {}
    for network in NETWORKS:
        for form, name, cell in cells(network):
            found[network, form, name] = cell
            click.echo(f"{network} {form} {name}: {cell}", err=True)
    path = Path(ROOT) / "docs" / "forms.md"
    path.write_text(document(found))
    click.echo(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    sys.exit(main())
