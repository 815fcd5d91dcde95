"""Which family a package is published in, and that its callers can be those of the family's releases."""

from __future__ import annotations

from collections.abc import Sequence

from ferryman.devices.fleet.repository.metadata import Roles
from ferryman.devices.fleet.repository.packs import Packs
from ferryman.devices.fleet.repository.releases import read_payload
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.manifest import Manifest
from ferryman.runtime.contracts.release import Release
from ferryman.runtime.contracts.tensor import DynamicDim, Signature, TensorSpec
from ferryman.runtime.package import read_manifest


def family_named(name: str, roles: Roles) -> str:
    """The family that a package's name means.

    Raises:
        CallerError: there is none of that name; a package is never taken for another's model unasked.
    """
    if name in roles.families:
        return name
    raise CallerError(
        f"the package's name is {name}, which is no family here; there are: {', '.join(roles.families) or 'none'}. "
        "Name the family that it belongs to (--family), or make one: ferryman keys add-family"
    )


def check_signature(manifest: Manifest, before: Sequence[Release], packs: Packs) -> None:
    """See that a package takes and gives what the family's newest release does.

    Symbols of dynamic dimensions do not count: PyTorch chooses them.

    Raises:
        CallerError: it does not.
        RepositoryError: that release cannot be read any more.
    """
    if not before:
        return
    newest = before[0]
    old = read_manifest(read_payload(newest.payloads[0], packs))
    if _comparable(old.signature) != _comparable(manifest.signature):
        raise CallerError(
            f"{manifest.name} has another signature than {newest.name} ({newest.package_name}): "
            f"{_describe(manifest.signature)}; {newest.name} has {_describe(old.signature)}. Name another family "
            "(--family), or, where all that call the model are ready for it, say --new-signature"
        )


def _comparable(signature: Signature) -> list[list[tuple[object, ...]]]:
    return [[_of(spec) for spec in specs] for specs in (signature.inputs, signature.outputs)]


def _of(spec: TensorSpec) -> tuple[object, ...]:
    sizes = ((one.min, one.max) if isinstance(one, DynamicDim) else one for one in spec.shape)
    return spec.name, spec.dtype, *sizes


def _describe(signature: Signature) -> str:
    inputs, outputs = (", ".join(one.describe() for one in specs) for specs in (signature.inputs, signature.outputs))
    return f"{inputs} -> {outputs}"
