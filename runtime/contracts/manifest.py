"""The manifest of a package: what it holds, what it needs, and how it was proven."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec.structs import replace

from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import Record
from ferryman.runtime.contracts.tensor import Signature, Tensor

SCHEMA = 1
RuntimeName = Literal["executorch", "tflite"]
"""The artifact's format; which interpreter runs it is the device's matter."""


class Payload(Record):
    """One file inside the package."""

    path: str
    size_bytes: int
    sha256: str


class Requirements(Record, kw_only=True):
    """What a device must have to run a variant."""

    interpreters: dict[str, str]
    """Interpreter name -> least version; any one of them suffices."""
    isa: tuple[str, ...] = ()
    """Instruction sets (as in /proc/cpuinfo) without which the artifact does not run; empty: any."""
    operators: int = 0
    """Least version of ferryman's own operators (`ferryman.runtime.kernels.VERSION`); 0: it uses none."""
    memory_estimate_bytes: int
    """Twice the artifact (runtimes pack weights anew) plus the largest set of activations alive at once.

    A model, not a measurement.
    """


class Lowering(Record):
    """What the backend did with the graph."""

    delegated: dict[str, int]
    """Operator -> how many nodes the delegate took."""
    fallback: dict[str, int]
    """Operator -> how many nodes run in the runtime's own kernels."""
    delegates: int
    """How many delegate calls one inference makes."""
    kernels: dict[str, int] = msgspec.field(default_factory=dict)
    """Operator of ferryman's own -> how many nodes its kernels run."""


class Verification(Record):
    """How far one interpreter's outputs are from eager's, over `vectors` input sets; the worst output counts."""

    interpreter: str
    version: str
    vectors: int
    sqnr_db: float
    """Signal over quantization noise, 20 log10(|ref|/|ref - out|); 200 stands for equal to the bit."""
    max_abs_error: float
    top1_agreement: float | None
    """Share of rows whose largest logit is the same; None where the output is not a row of logits."""
    distinct: int | None = None
    """How many of the input sets differ from each other; None: nobody counted."""


class LayerForm(Record):
    """What became of one convolution or linear layer."""

    path: str
    """Of the module in the model."""
    form: str
    note: str
    """How it runs, or why it was left as it was."""


class Variant(Record):
    """One artifact a device can choose."""

    name: str
    form: str
    runtime: RuntimeName
    payload: str
    signature: Signature
    """The artifact's own names and dtypes, position by position the model's."""
    requires: Requirements
    lowering: Lowering
    verified: tuple[Verification, ...]
    sqnr_min_db: float | None = None
    """The bar on the golden vectors where the form rounds: what it held on the host, with little room; None: the
    manifest's."""
    entry: str | None = None
    """Which of the payload's entries it is, where variants share one: a method or a signature; None: the only one."""
    layers: tuple[LayerForm, ...] = ()
    """Of a compressed form: every layer that could have taken it, in order."""
    golden: tuple[str, ...] = ()
    """Payload paths of golden vectors of its own, of a variant that is another model; empty: the manifest's."""
    share: float | None = None
    """Of such variants: multiplications of this one over those of the largest."""
    origins: dict[str, str] = msgspec.field(default_factory=dict)
    """Operator of the artifact -> path of the module it came from, where it is known.

    Of a `.tflite`, the operator's number in its subgraph. Of a `.pte`, `@` and the number of an instruction that calls
    a kernel; or the debug handle of a node inside a delegate.
    """

    @property
    def called(self) -> str:
        """The form, with which of several models it is of."""
        return self.form if self.entry is None else f"{self.form}-{self.entry}"


class GoldenVector(Record):
    """One input set and what eager answered to it; a payload of its own, in MessagePack."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class Manifest(Record, kw_only=True):
    """First entry of a package; every other entry is listed in `payloads`."""

    schema: int = SCHEMA
    name: str
    signature: Signature
    variants: tuple[Variant, ...]
    golden: tuple[str, ...]
    """Payload paths, each a packed GoldenVector."""
    golden_sqnr_min_db: float
    """The bar an artifact must hold on the golden vectors, on the device as on the host."""
    payloads: tuple[Payload, ...]
    created_with: dict[str, str]
    """Distribution -> version of everything that shaped the artifacts."""

    def variant(self, name: str) -> Variant:
        """Look a variant up by name.

        Raises:
            KeyError: no such variant; the message lists those there are.
        """
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise KeyError(f"no variant {name!r}; there are: {', '.join(v.name for v in self.variants)}")

    def only(self, variants: Sequence[str] | None) -> Manifest:
        """What is left of it where a device holds only some variants: those, their payloads and golden vectors.

        None: all. The order is the manifest's.

        Raises:
            CallerError: there is no such variant, or none is named.
        """
        if variants is None:
            return self
        names = [variant.name for variant in self.variants]
        if not variants or (unknown := sorted(set(variants) - set(names))):
            asked = ", ".join(unknown) if variants else "none"
            raise CallerError(f"package {self.name} has no variant {asked}; there are: {', '.join(names)}")
        held = tuple(variant for variant in self.variants if variant.name in set(variants))
        shared = any(not variant.golden for variant in held)  # else the vectors of variants of their own will do
        golden = self.golden if shared else held[0].golden
        paths = {*golden, *(path for variant in held for path in (variant.payload, *variant.golden))}
        return replace(
            self, variants=held, golden=golden, payloads=tuple(one for one in self.payloads if one.path in paths)
        )
