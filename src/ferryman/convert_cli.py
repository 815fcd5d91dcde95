"""`ferryman convert`, and what `ferryman ship` shares with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import click

from ferryman.options import PATH
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.say import echo

if TYPE_CHECKING:
    from ferryman.converter.pipeline import Conversion
    from ferryman.runtime.contracts.manifest import RuntimeName

C = TypeVar("C", bound=Callable[..., Any])
_RUNTIMES = ("executorch", "tflite")


class How(TypedDict):
    """What `conversion_options` asked for."""

    form: tuple[str, ...]
    calibrate: str | None
    strict: bool
    name: str | None
    min_sqnr: float | None
    interpreter: tuple[str, ...]


class _Form(click.ParamType[str]):
    """The name of a form."""

    name = "NAME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ANN401  # click's signature
        from ferryman.converter.quantize.recipe import check_form

        try:
            check_form(value)
        except CallerError as error:
            self.fail(str(error), param, ctx)
        return str(value)


def conversion_options(command: C) -> C:
    """Adds how a model is converted, as the keys of `How`."""
    options = (
        click.option(
            "--form",
            multiple=True,
            default=("fp32",),
            show_default=True,
            type=_Form(),
            help="fp32; binary: layers with weights and activations of -1 and 1 run as bits; sparse: zeros of pruned "
            "layers are neither stored nor multiplied, where that is measured faster; or int8, 4bit, 2bit, or "
            "mixed-3.5b: 3.5 bits a weight on average, chosen layer by layer; with options such as 4bit-g64-gptq (see "
            "docs/quantization.md and docs/pruning.md). May be given several times: one package holds all.",
        ),
        click.option(
            "--calibrate",
            metavar="MODULE:FACTORY",
            help="Gives the inputs by which quantized forms learn how far activations range [default: the example "
            "alone].",
        ),
        click.option(
            "--strict", is_flag=True, help="Refuse a form that is not smaller than fp32, or slower, on any interpreter."
        ),
        click.option("--name", help="Name of the package [default: that of the factory or file]."),
        click.option(
            "--min-sqnr", type=float, help="Bar in dB that every output must hold, 5 to 200 [default: the form's]."
        ),
        click.option(
            "--interpreter",
            multiple=True,
            help="Prove on this one of its runtime's only, and run on no other; may be given twice [default: all "
            "found].",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def runtime_option(flag: str) -> Callable[[C], C]:
    """Adds which runtimes are lowered to."""
    return click.option(
        flag,
        multiple=True,
        default=_RUNTIMES,
        show_default=True,
        type=click.Choice(_RUNTIMES),
        help="Runtime to lower to; may be given twice.",
    )


@click.command()
@click.argument("source")
@runtime_option("--to")
@conversion_options
@click.option("-o", "--output", type=PATH, default=Path(), help="Folder for the package [default: here].")
def convert(source: str, to: tuple[RuntimeName, ...], output: Path, **how: Any) -> None:  # noqa: ANN401  # `How`
    """Lower SOURCE, prove every artifact against eager, and write a package.

    SOURCE is package.module:factory, where factory() returns (module in eval mode, example inputs[, dynamic_shapes]),
    or a .pt2 file saved with torch.export.save. An artifact that computes something else than the model on any
    interpreter found is an error, and no package is written.
    """
    asked = How(**how)  # type: ignore[typeddict-item]  # the keys of conversion_options
    check_conversion(source, asked, output)
    made = run_conversion(source, to, asked, output)
    from ferryman.describe import describe_manifest

    echo(describe_manifest(made.manifest, made.sha256))
    if made.compared:
        from ferryman.converter.honest import table

        echo("\nbeside fp32, on this machine, one thread, in turn (medians; quartiles of the ratio):")
        echo(table(made.compared))
        for note in made.notes:
            echo(f"note: {note}", err=True)
    if made.layer_times:
        from ferryman.converter.sparse.measure import layer_table

        echo("\nlayers with zeros, each alone, on this machine, one thread, in turn (fastest rounds):")
        echo(layer_table(made.layer_times))
    if made.shared:
        from ferryman.converter.shared import shared_table

        echo("\nshared weights, held once:")
        echo(shared_table(made.shared))
    echo(f"\n{made.path}  {made.path.stat().st_size:,} bytes")
    slowest = sorted(made.seconds.items(), key=lambda item: -item[1])
    echo("time: " + ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in slowest if seconds > 0.05))  # noqa: PLR2004


def check_conversion(source: str, how: How, output: Path) -> None:
    """See what is wrong with a conversion before anything is loaded for it; the folder is made.

    Raises:
        CallerError: the source, an option or the folder cannot be used.
    """
    from ferryman.converter.quantize.recipe import is_quantized
    from ferryman.converter.source_text import look_for, parse_source
    from ferryman.runtime.compare import SQNR_CAP_DB
    from ferryman.runtime.package import SQNR_LEAST_DB

    parsed, form, calibrate, min_sqnr = parse_source(source), how["form"], how["calibrate"], how["min_sqnr"]
    if calibrate is not None and ":" not in calibrate:
        raise CallerError(f"--calibrate is package.module:factory, found {calibrate!r}")
    if len(set(form)) != len(form):
        raise CallerError(f"a form is given twice: {', '.join(form)}")
    if min_sqnr is not None and not SQNR_LEAST_DB <= min_sqnr <= SQNR_CAP_DB:
        raise CallerError(f"--min-sqnr is {SQNR_LEAST_DB:g} to {SQNR_CAP_DB:g} dB, found {min_sqnr:g}")
    _make_folder(output)
    if calibrate is None and any(is_quantized(one) and "dynamic" not in one for one in form):
        echo("note: without --calibrate the example alone says how far activations range", err=True)
    look_for(parsed)


def run_conversion(source: str, to: Sequence[RuntimeName], how: How, output: Path) -> Conversion:
    """Convert, and tell each stage."""
    echo("loading the toolchains", err=True)
    from ferryman.converter.api import convert as run

    return run(
        source,
        to=to,
        form=how["form"],
        calibration=how["calibrate"],
        strict=how["strict"],
        output=output,
        name=how["name"],
        sqnr_min_db=how["min_sqnr"],
        interpreters=how["interpreter"],
        progress=lambda stage: echo(f"  {stage}", err=True),
    )


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CallerError(f"-o names a folder, and {path}: {error.strerror}; name another") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise CallerError(f"-o: you may not write in {path}; name another folder")
