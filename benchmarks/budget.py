"""How long a peer may take, so that runs end: predicted from earlier cases, before it is called."""

from __future__ import annotations

import math
from collections.abc import Iterable

from cases import Case
from peers.base import Unsupported
from table import format_time

#: Every library is timed in as many rounds at least, and a slow one in no more.
MIN_ROUNDS = 3
#: Rounds that a case's seconds must hold of a library that is not slow.
_ROUNDS_IF_FAST = 10
#: A peer's call may take as many times the seconds of a case.
_LONGEST_CALL = 2.0


class Budget:
    """What has been seen of each library's speed, and what follows from it for the next case."""

    def __init__(self, seconds: float) -> None:
        """Plan for `seconds` a case."""
        self._seconds = seconds
        self._seen: dict[str, list[tuple[Case, float]]] = {}

    def record(self, name: str, case: Case, seconds: float) -> None:
        """Remember what one call took."""
        self._seen.setdefault(name, []).append((case, seconds))

    def predict(self, name: str, case: Case) -> float:
        """Seconds of one call at the rate of the case nearest in size; 0 if none was like it."""
        kind = case.direction, case.dtype
        similar = [
            (abs(math.log(other.flops / case.flops)), seconds / other.flops)
            for other, seconds in self._seen.get(name, [])
            if (other.direction, other.dtype) == kind
        ]
        return min(similar)[1] * case.flops if similar else 0.0

    def require_time(self, name: str, case: Case) -> None:
        """Refuse a case whose every call would be too long; cattn itself never is."""
        seconds = self.predict(name, case)
        if self._is_too_long(name, seconds):
            raise Unsupported(f"would take {format_time(seconds)} a call")

    def is_slow(self, name: str, once: float) -> bool:
        """Whether a peer gets the fewest rounds, so that the others get theirs."""
        return name != "cattn" and once > self._seconds / _ROUNDS_IF_FAST

    def expect(self, cases: Iterable[Case]) -> float:
        """Seconds that cases will take altogether, as far as one can tell."""
        total = 0.0
        for case in cases:
            calls = {name: self.predict(name, case) for name in self._seen}
            once = sum(call for name, call in calls.items() if not self._is_too_long(name, call))
            total += 2 * once + max(self._seconds, MIN_ROUNDS * once)
        return total

    def _is_too_long(self, name: str, call: float) -> bool:
        return name != "cattn" and call > _LONGEST_CALL * self._seconds
