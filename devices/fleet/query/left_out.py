"""What an answer does not hold, gathered so that it can be said."""

from __future__ import annotations

from ferryman.profiler.report_words import printable

_WORDS_MAX = 300


class LeftOut:
    """Damaged rows are counted, and the first of each kind is named."""

    def __init__(self) -> None:
        self._damaged: dict[str, tuple[int, str]] = {}
        self._said: dict[str, None] = {}

    def damaged(self, what: str, where: str, why: object) -> None:
        """One `what` (such as `sample`) that cannot be read."""
        count, first = self._damaged.get(what, (0, printable(f"{where}: {why}")[:_WORDS_MAX]))
        self._damaged[what] = count + 1, first

    def say(self, words: str) -> None:
        """Something else, once."""
        self._said[words] = None

    def words(self) -> tuple[str, ...]:
        """A sentence each."""
        damaged = (
            f"{count:,} damaged {what}{'' if count == 1 else 'es' if what.endswith('s') else 's'}; the first: {first}"
            for what, (count, first) in self._damaged.items()
        )
        return (*self._said, *damaged)
