"""Every error ferryman raises on purpose, by the party at fault.

FerrymanError
├── CallerError          the call or its arguments are wrong; the same call will fail again
├── ModelError           the model cannot be captured or lowered as asked
│   └── ParityError      an artifact computes something else than eager does
├── PackageError         the package's bytes are not what they claim to be
├── RepositoryError      the repository's answers are not what they must be
│   └── TrustError       metadata or bytes that the signatures do not vouch for: damage, or an attack
├── StoreError           the collector's database cannot be opened, read or written
├── DeviceError          the device cannot do what was asked
│   ├── BusyError        another install or update is at work there; the same may do later
│   ├── BudgetError      it would cost more data than this device may spend
│   ├── RuntimeFault     an interpreter refused or failed; carries its own message
│   └── RuntimeCrash     the process that ran an interpreter died
├── IdentityError        a key, certificate or signature is missing, wrong, expired, revoked or used before
└── LinkError            SSH or MQTT did not carry the message
    └── RequestTimeout   nobody answered in time

Each message says what was expected, what was found, and what to do next. `party` is stable: it is what crosses
process and network boundaries, and `from_wire` builds the same error again on the other side.
"""

from __future__ import annotations

from typing import ClassVar

from ferryman.runtime.contracts.record import Record


class FerrymanError(Exception):
    """Root of the tree; `party` names who is at fault."""

    party: ClassVar[str] = "ferryman"


class CallerError(FerrymanError):
    """The call or its arguments are wrong."""

    party = "caller"


class ModelError(FerrymanError):
    """The model cannot be captured or lowered as asked."""

    party = "model"


class ParityError(ModelError):
    """An artifact's outputs differ from eager's by more than the bar."""

    party = "artifact"


class PackageError(FerrymanError):
    """The package is truncated, altered, hostile, or of another version."""

    party = "package"


class RepositoryError(FerrymanError):
    """The repository answers with something else than was asked for."""

    party = "repository"


class TrustError(RepositoryError):
    """Metadata or bytes are not those the signatures vouch for; nothing of them is used."""

    party = "trust"


class StoreError(FerrymanError):
    """The collector's database cannot be opened, read or written."""

    party = "store"


class DeviceError(FerrymanError):
    """The device cannot do what was asked of it."""

    party = "device"


class BusyError(DeviceError):
    """Another install or update holds the slot store."""

    party = "busy"


class BudgetError(DeviceError):
    """An update needs more bytes than the device may spend."""

    party = "budget"


class RuntimeFault(DeviceError):
    """An interpreter refused or failed; the message is its own."""

    party = "runtime"


class RuntimeCrash(DeviceError):
    """The process that ran an interpreter died."""

    party = "runtime-crash"


class IdentityError(FerrymanError):
    """A key, certificate or signature does not prove who its owner claims to be; nothing is done for them."""

    party = "identity"


class LinkError(FerrymanError):
    """A connection could not be made, or broke."""

    party = "link"


class RequestTimeout(LinkError):
    """Nobody answered in the time allowed."""

    party = "timeout"


class WireError(Record):
    """An error as it crosses a process or network boundary."""

    party: str
    message: str


_BY_PARTY: dict[str, type[FerrymanError]] = {
    kind.party: kind
    for kind in (
        FerrymanError,
        CallerError,
        ModelError,
        ParityError,
        PackageError,
        RepositoryError,
        TrustError,
        StoreError,
        DeviceError,
        BusyError,
        BudgetError,
        RuntimeFault,
        RuntimeCrash,
        IdentityError,
        LinkError,
        RequestTimeout,
    )
}


def to_wire(error: Exception) -> WireError:
    """Describe `error` for the other side; an unexpected exception keeps its type in the message."""
    if isinstance(error, FerrymanError):
        return WireError(party=error.party, message=str(error))
    return WireError(party="ferryman", message=f"{type(error).__name__}: {error}")


def from_wire(wire: WireError) -> FerrymanError:
    """Build the error the other side described; a party of a later version becomes the root."""
    return _BY_PARTY.get(wire.party, FerrymanError)(wire.message)
