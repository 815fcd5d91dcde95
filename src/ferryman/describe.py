"""Records for people; what could steer a terminal is shown as `?`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ferryman.runtime.contracts.manifest import Manifest, Variant
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.tensor import Signature
from ferryman.runtime.say import printable
from ferryman.runtime.session import INTERPRETERS

_LAYERS_SHOWN = 4


def describe_manifest(manifest: Manifest, sha256: str) -> str:
    """Several lines: what goes in and out, then every variant with its size, its lowering and its proofs."""
    return "\n".join(map(printable, _lines(manifest, sha256)))


def describe_status(status: Status) -> str:
    """Several lines: whether the device is there, what it serves, what could run there, what waits to be sent."""
    release = f", release {status.release}" if status.release else ""
    serves = f"{status.package_name} ({status.package_sha256:.12}){release}" if status.package_sha256 else "nothing yet"
    interpreters = ", ".join(f"{name} {version}" for name, version in status.interpreters.items())
    lines = (
        f"{status.device}: {'online' if status.online else 'offline'}, ferryman {status.ferryman}",
        f"  serves        {serves}",
        *([f"  answers       {status.answers}"] if status.answers else []),
        *(
            [f"  labels        {', '.join(f'{k}={v}' for k, v in sorted(status.labels.items()))}"]
            if status.labels
            else []
        ),
        f"  interpreters  {interpreters or 'none'}",
        *([f"  mode          {status.mode}"] if status.mode else []),
        f"  telemetry     {status.outbox_pending:,} records waiting, {status.outbox_dropped:,} dropped",
        *([f"  storage       {status.storage}: no telemetry reaches the disk"] if status.storage else []),
    )
    return "\n".join(map(printable, lines))


def _lines(manifest: Manifest, sha256: str) -> Iterator[str]:
    sizes = {payload.path: payload.size_bytes for payload in manifest.payloads}
    yield f"{manifest.name}  sha256 {sha256}"
    for what, specs in (("input", manifest.signature.inputs), ("output", manifest.signature.outputs)):
        for spec in specs:
            yield f"  {what:6} {spec.describe()}"
    for variant in manifest.variants:
        yield ""
        yield from _variant(variant, sizes[variant.payload], manifest.golden_sqnr_min_db)
        yield from _narrowed(manifest.signature, variant.signature)
    yield ""
    yield f"  golden vectors: {len(manifest.golden)}"
    yield "  made with: " + ", ".join(f"{tool} {version}" for tool, version in manifest.created_with.items())


def _variant(variant: Variant, size_bytes: int, bar_db: float) -> Iterator[str]:
    lowering = variant.lowering
    needs = " or ".join(f"{name} >= {least}" for name, least in variant.requires.interpreters.items())
    yield f"  {variant.name}  {size_bytes:,} bytes  {variant.payload}"
    if variant.entry is not None:
        share = "" if variant.share is None else f", {variant.share:.2f} of the largest's multiplications"
        yield f"    entry      {variant.entry}, of several in this artifact, which share weights{share}"
    yield f"    delegated  {_counts(lowering.delegated)} in {lowering.delegates} call(s)"
    yield f"    fell back  {_counts(lowering.fallback)}"
    if lowering.kernels:
        yield f"    own        {_counts(lowering.kernels)} (operators of version {variant.requires.operators})"
    memory_kb = variant.requires.memory_estimate_bytes / 1e3
    isa = f", instruction sets {', '.join(variant.requires.isa)}" if variant.requires.isa else ""
    yield f"    needs      {needs}{isa}; about {memory_kb:,.0f} kB (estimate)"
    for proof in variant.verified:
        few = "" if proof.distinct in (None, proof.vectors) else f", {proof.distinct} of them distinct"
        top1 = "" if proof.top1_agreement is None else f", top-1 agreement {proof.top1_agreement:.1%}"
        yield (
            f"    proven     {proof.interpreter} {proof.version}: {proof.sqnr_db:.1f} dB, "
            f"largest error {proof.max_abs_error:.2g}{top1} ({proof.vectors} input sets{few})"
        )
    yield f"    bar        {variant.sqnr_min_db or bar_db:.1f} dB on the golden vectors, on a device"
    if variant.layers:
        yield from _layers(variant)
    if missing := [name for name in INTERPRETERS[variant.runtime] if name not in variant.requires.interpreters]:
        yield f"    not proven on {', '.join(missing)}, so devices will not run it there; to have it proven, install"
        yield "               that here (tflite-runtime: in an environment of its own, see FERRYMAN_DEVICE_PYTHON)"


def _layers(variant: Variant) -> Iterator[str]:
    """How many layers took the form, and what became of each, those of a kind together."""
    paths: dict[tuple[str, str], list[str]] = {}
    for layer in variant.layers:
        paths.setdefault((layer.form, layer.note), []).append(layer.path)
    taken = sum(len(found) for (form, _), found in paths.items() if form != "fp32")
    yield f"    layers     {taken} of {len(variant.layers)} {variant.form}"
    for (form, note), found in paths.items():
        shown = ", ".join(dict.fromkeys(found[:_LAYERS_SHOWN])) + (" ..." if len(found) > _LAYERS_SHOWN else "")
        yield f"               {len(found)} x {form}: {note} ({shown})"


def _narrowed(model: Signature, artifact: Signature) -> Iterator[str]:
    """What the artifact carries in a smaller type than the model does."""
    pairs = [
        *zip(model.inputs, artifact.inputs, strict=False),
        *zip(model.outputs, artifact.outputs, strict=False),
    ]
    changed = [f"{ours.name} {ours.dtype} as {theirs.dtype}" for ours, theirs in pairs if ours.dtype != theirs.dtype]
    if changed:
        yield f"    narrower   {', '.join(changed)}: inputs that do not fit are refused, overflow inside goes unnoticed"


def _counts(operators: Mapping[str, int]) -> str:
    listed = ", ".join(f"{name} x{count}" if count > 1 else name for name, count in operators.items())
    return f"{sum(operators.values())} ({listed})" if operators else "nothing"
