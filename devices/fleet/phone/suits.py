"""Which variants of a package a phone can run; values in, values out."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from ferryman.devices.fleet.phone.runner import RunnerFacts
from ferryman.runtime.contracts.errors import DeviceError
from ferryman.runtime.contracts.manifest import Manifest, Variant
from ferryman.runtime.golden import at_least

INTERPRETER = "executorch"


def usable_on(facts: RunnerFacts, isa: AbstractSet[str], variant: Variant) -> dict[str, str]:
    """Interpreters of a phone on which a variant is proven: name -> version; there is one."""
    return {} if why_not(facts, isa, variant) else {INTERPRETER: facts.executorch}


def why_not(facts: RunnerFacts, isa: AbstractSet[str], variant: Variant) -> str:
    """What a phone lacks for a variant; empty when nothing.

    Args:
        facts: of the runner there.
        isa: instruction sets that all its cores have, under the kernel's names.
        variant: to be run.
    """
    requires = variant.requires
    if variant.runtime != INTERPRETER:
        return "TFLite, and a phone runs ExecuTorch alone"
    least = requires.interpreters.get(INTERPRETER)
    if least is None or not at_least(facts.executorch, least):
        return f"{_least(requires.interpreters)}, found {INTERPRETER} {facts.executorch}"
    if absent := sorted(set(requires.isa) - isa):
        return f"the instruction sets {', '.join(absent)}, which this processor lacks"
    if requires.operators > facts.kernels_version:
        return (
            f"ferryman's operators of version {requires.operators}, found version {facts.kernels_version} (make the "
            "runner again)"
        )
    return ""


def _least(interpreters: Mapping[str, str]) -> str:
    return " or ".join(f"{name} >= {version}" for name, version in interpreters.items())


def suiting(manifest: Manifest, facts: RunnerFacts, isa: AbstractSet[str]) -> Manifest:
    """What of a package a phone can run.

    Raises:
        DeviceError: nothing; the message says for each variant what is missing.
    """
    missing = {variant.name: why_not(facts, isa, variant) for variant in manifest.variants}
    if all(missing.values()):
        raise DeviceError(
            f"this phone can run no variant of {manifest.name}: "
            + "; ".join(f"{name} needs {what}" for name, what in missing.items())
        )
    runs = tuple(name for name, what in missing.items() if not what)
    return manifest if len(runs) == len(missing) else manifest.only(runs)
