"""Requests to an agent and its answers (MessagePack, see docs/telemetry.md for the topics)."""

from __future__ import annotations

from typing import Annotated

import msgspec

from ferryman.runtime.contracts.envelope import Count
from ferryman.runtime.contracts.errors import WireError
from ferryman.runtime.contracts.facts import DeviceFacts
from ferryman.runtime.contracts.measurement import Measurement, ProfileSpec
from ferryman.runtime.contracts.record import Record
from ferryman.runtime.contracts.tensor import Tensor

LABELS_MAX = 256
Word = Annotated[str, msgspec.Meta(max_length=256)]
Text = Annotated[str, msgspec.Meta(max_length=4096)]
Words = Annotated[dict[Word, Text], msgspec.Meta(max_length=256)]
"""What a status holds at most of anything: far more than an agent ever sent, and far less than a message."""


class InferRequest(Record, tag="infer"):
    """Run the active package once on `inputs` (the model's signature)."""

    inputs: tuple[Tensor, ...]
    variant: str | None = None
    interpreter: str | None = None


class ProfileRequest(Record, tag="profile"):
    """Measure the active package; refused if it is not `package_sha256`."""

    package_sha256: str
    spec: ProfileSpec


class StatusRequest(Record, tag="status"):
    """Ask who is there."""


class FactsRequest(Record, tag="facts"):
    """Ask what the device is and has; agents of an older ferryman cannot read it."""


class CancelRequest(Record, tag="cancel"):
    """Nobody waits for the answer to `request` any more; is not answered itself."""

    request: str


class Request(Record):
    """One question; `id` correlates, `reply_to` is the topic the answer goes to."""

    id: str
    reply_to: str
    timeout_s: float
    body: InferRequest | ProfileRequest | StatusRequest | FactsRequest | CancelRequest


class InferReply(Record, tag="infer"):
    """Outputs in the model's order, and the time the session alone took."""

    outputs: tuple[Tensor, ...]
    duration_ns: int
    variant: str
    interpreter: str
    names: tuple[str, ...] = ()
    """Of the outputs; empty from agents that do not tell."""


class ProfileReply(Record, tag="profile"):
    """One measurement per (variant, interpreter) asked for."""

    measurements: tuple[Measurement, ...]


class Status(Record, tag="status"):
    """Birth, last will and status answer: retained on the status topic as JSON."""

    device: Word
    online: bool
    birth: Count = 0
    """Counts connections over the life of the outbox; a last will has that of its connection, so that a late one of an
    earlier connection is told from news (as bdSeq in Sparkplug B). 0: from agents that do not tell."""
    boot: Word = ""
    ferryman: Word = ""
    package_sha256: Word | None = None
    package_name: Text | None = None
    release: Text | None = None
    """Of a repository, that serves; None: it came by another way."""
    answers: Text | None = None
    """The variant and interpreter that were picked; None: the package's first."""
    interpreters: Words = msgspec.field(default_factory=dict)
    standing: Words = msgspec.field(default_factory=dict)
    """What moves measurements and stays (see `ferryman.profiler.standing`); empty from agents that do not tell."""
    labels: Annotated[dict[Word, Word], msgspec.Meta(max_length=LABELS_MAX)] = msgspec.field(default_factory=dict)
    """What the device is called by in queries, such as site=lab; as `ferryman agent --label` was told."""
    model: Text = ""
    """The kind of device, as in `Reported`; empty from agents that do not tell."""
    challenge: Text = ""
    """What a command to this agent must be signed with (`ferryman.devices.signing`); empty: it takes unsigned ones."""
    mode: Word = ""
    """How much it uses its link: full, metered or offline. A death says offline if the device went on purpose, and
    else nothing. Empty from agents that do not tell."""
    outbox_pending: Count = 0
    outbox_dropped: Count = 0
    storage: Text = ""
    """Why the disk takes no telemetry: `read-only`, `full`, `failing`, or what the kernel says; empty: it does."""

    def outdated_by(self, seen: Status | None) -> bool:
        """Whether this is the death of an earlier connection than the one that `seen` is the birth of."""
        return (
            seen is not None
            and (seen.online, self.online) == (True, False)
            and 0 < self.birth < seen.birth
            and self.boot.partition(".")[0] == seen.boot.partition(".")[0]  # else another outbox counts
        )


class FactsReply(Record, tag="facts"):
    """What the device is and has."""

    facts: DeviceFacts


class Failure(Record, tag="failure"):
    """The request was understood and could not be done."""

    error: WireError


class Response(Record):
    """The answer to the request of the same id."""

    id: str
    device: str
    body: InferReply | ProfileReply | Status | FactsReply | Failure
