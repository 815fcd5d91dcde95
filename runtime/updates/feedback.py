"""Error feedback: what a codec left out of one update is added to the next."""

from __future__ import annotations

from dataclasses import dataclass

from ferryman.runtime.updates.base import Codec, Floats, Shapes, State, Update, shapes_of


@dataclass(frozen=True)
class ErrorFeedback:
    """Any codec, with its own error carried over: what is missing at the other end stays bounded, however many come."""

    codec: Codec

    @property
    def name(self) -> str:
        """See `Codec`."""
        return f"{self.codec.name} with error feedback"

    def encode(self, update: Update, state: State) -> bytes:
        """See `Codec.encode`; `state` holds what is still owed."""
        owed = {name: one + state[f"owed {name}"] if f"owed {name}" in state else one for name, one in update.items()}
        data = self.codec.encode(owed, state)
        got = self.codec.decode(data, shapes_of(update))
        state |= {f"owed {name}": owed[name] - got[name] for name in update}
        return data

    def decode(self, data: bytes, shapes: Shapes) -> dict[str, Floats]:
        """See `Codec.decode`."""
        return self.codec.decode(data, shapes)
