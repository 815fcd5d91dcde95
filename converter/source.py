"""Where a model comes from: a factory in someone's package, or a saved program."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from ferryman.converter.reason import reason
from ferryman.converter.source_text import missing, named, parse_source, see_current_directory
from ferryman.runtime.contracts.errors import CallerError, ModelError

_ENTRY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}", re.ASCII)


@dataclass(frozen=True)
class Source:
    """A module ready to be captured, and one call to it."""

    name: str
    module: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    dynamic_shapes: Any = None
    """As `torch.export.export` takes it."""
    program: torch.export.ExportedProgram | None = None
    """Where the source was captured already."""


def load_sources(text: str) -> dict[str | None, Source]:
    """Load `package.module:factory` or a `.pt2` file.

    A factory takes nothing and returns `(module, inputs)` or `(module, inputs, dynamic_shapes)`: an `nn.Module` in
    eval mode, or several in a dict by name; the example call's positional arguments as a tuple (or its keyword
    arguments as a dict); and what `torch.export.export` takes as `dynamic_shapes`. The current directory is on the
    import path.

    Returns:
        As `make_sources`.

    Raises:
        CallerError: no such file, module or function, or the factory fails, or returns something else.
        ModelError: the program cannot be read, or the module is in training mode.
    """
    parsed = parse_source(text)
    if isinstance(parsed, Path):
        return {None: _load_program(parsed)}
    module_name, factory_name = parsed
    factory = _factory(module_name, factory_name)
    if isinstance(factory, torch.nn.Module) or (isinstance(factory, type) and issubclass(factory, torch.nn.Module)):
        raise CallerError(
            f"{text} is a module itself; SOURCE must name a factory: a function that takes nothing and returns "
            "(module, inputs)"
        )
    made = _call(text, factory, "(module, inputs)")
    expected = "expected (nn.Module, inputs) or (nn.Module, inputs, dynamic_shapes), or a dict of modules in its place"
    if not isinstance(made, tuple) or len(made) not in (2, 3):
        raise CallerError(f"{text} returned {type(made).__name__}: {expected}")
    module, inputs, dynamic_shapes = (*made, None)[:3]
    if not isinstance(module, torch.nn.Module | Mapping) or not isinstance(inputs, (tuple, list, dict, torch.Tensor)):
        raise CallerError(f"{text} returned ({type(module).__name__}, {type(inputs).__name__}, ...): {expected}")
    return make_sources(module, inputs, dynamic_shapes=dynamic_shapes, name=named(parsed))


def call_factory(text: str, what: str) -> Any:  # noqa: ANN401  # whatever it returns
    """Call `package.module:factory` for something else than a model.

    Raises:
        CallerError: no such module or function, or it fails.
    """
    parsed = parse_source(text)
    if isinstance(parsed, Path):
        raise CallerError(f"{what} is given as package.module:factory, found {text}")
    return _call(text, _factory(*parsed), what)


def _call(text: str, factory: Callable[[], Any], what: str) -> Any:  # noqa: ANN401  # whatever it returns
    try:
        return factory()
    except SystemExit as error:
        raise CallerError(f"{text} ended the process ({_exit(error)}); a factory returns {what}") from error
    except Exception as error:  # someone else's code
        raise CallerError(f"{text} failed: {type(error).__name__}: {reason(error)}") from error


def make_sources(
    model: torch.nn.Module | Mapping[str, torch.nn.Module],
    inputs: Any,  # noqa: ANN401  # see `make_source`
    *,
    dynamic_shapes: Any = None,  # noqa: ANN401  # torch's own type is Any
    name: str | None = None,
) -> dict[str | None, Source]:
    """A module, or several that take the same inputs.

    Returns:
        Sources by name; None: of one alone.

    Raises: as `make_source`; and
        CallerError: there are none, or one has no name that a variant can have.
    """
    if not isinstance(model, Mapping):
        return {None: make_source(model, inputs, dynamic_shapes=dynamic_shapes, name=name)}
    if not model:
        raise CallerError("there is no module to convert: the dict of them is empty")
    for entry in model:
        if not isinstance(entry, str) or not _ENTRY.fullmatch(entry):
            raise CallerError(
                f"a variant is named with 1 to 40 letters, digits or any of _ . -, not {entry!r}; it begins with a "
                "letter or digit"
            )
    return {
        entry: make_source(module, inputs, dynamic_shapes=dynamic_shapes, name=name or type(module).__name__)
        for entry, module in model.items()
    }


def make_source(
    module: torch.nn.Module,
    inputs: tuple[Any, ...] | list[Any] | dict[str, Any] | torch.Tensor,
    *,
    dynamic_shapes: Any = None,  # noqa: ANN401  # torch's own type is Any
    name: str | None = None,
) -> Source:
    """Check a module and its example inputs.

    Raises:
        CallerError: no module, or no inputs.
        ModelError: training mode, or an input that is not a dense CPU tensor.
    """
    if not isinstance(module, torch.nn.Module) or not isinstance(inputs, (tuple, list, dict, torch.Tensor)):
        raise CallerError(
            f"expected an nn.Module and example inputs, found {type(module).__name__} and {type(inputs).__name__}; "
            "inputs are a tensor, a tuple of positional or a dict of keyword arguments"
        )
    name = name or type(module).__name__
    training = [path or name for path, part in module.named_modules() if part.training]
    if training:
        raise ModelError(f"{training[0]} is in training mode: call .eval() on the module before converting it")
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(inputs, dict):
        kwargs = inputs
    else:
        args = (inputs,) if isinstance(inputs, torch.Tensor) else tuple(inputs)
    try:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise ModelError(f"{name}.forward does not take the example inputs: {error}") from error
    _check_tensors(name, (bound.args, bound.kwargs))
    return Source(name=name, module=module, args=bound.args, kwargs=bound.kwargs, dynamic_shapes=dynamic_shapes)


def _check_tensors(name: str, inputs: object) -> None:
    for leaf in tree_leaves(inputs):
        if not isinstance(leaf, torch.Tensor):
            raise ModelError(
                f"{name}: every input must be a tensor, found {leaf!r}; close over constants in a wrapper module"
            )
        if leaf.layout != torch.strided or leaf.device.type != "cpu":
            layout = str(leaf.layout).removeprefix("torch.")
            raise ModelError(
                f"{name}: every input must be a dense CPU tensor, found a {layout} tensor on {leaf.device.type}; "
                "give .to_dense() or .cpu() ones with values"
            )


def _factory(module_name: str, factory_name: str) -> Callable[[], Any]:
    see_current_directory()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise missing(error.name) from error
        raise CallerError(f"{module_name} cannot be imported: {error}") from error
    except SystemExit as error:
        raise CallerError(
            f"{module_name} ended the process while it was imported ({_exit(error)}); put what a script does under "
            'if __name__ == "__main__"'
        ) from error
    except Exception as error:  # someone else's code
        raise CallerError(f"{module_name} cannot be imported: {type(error).__name__}: {error}") from error
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        there = ", ".join(n for n, f in vars(module).items() if inspect.isfunction(f) and not n.startswith("_"))
        raise CallerError(f"{module_name} has no function {factory_name!r}; there are: {there or 'none'}")
    return factory  # type: ignore[no-any-return]  # what it returns is checked by the caller


def _exit(error: SystemExit) -> str:
    return f"exit code {error.code or 0}"  # text, of sys.exit("text")


def _load_program(path: Path) -> Source:
    try:
        program = torch.export.load(path)
    except Exception as error:  # torch.export.load raises many kinds
        raise ModelError(f"{path} is not a program that torch {torch.__version__} can load: {reason(error)}") from error
    if program.example_inputs is None:
        raise ModelError(f"{path} holds no example inputs; save it again with torch.export.save from torch >= 2.3")
    args, kwargs = program.example_inputs
    _check_tensors(str(path), (args, kwargs))
    return Source(
        name=named(path),
        module=program.module(),
        args=tuple(args),
        kwargs=dict(kwargs or {}),
        program=program,
    )
