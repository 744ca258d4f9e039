"""What a person who looks on is told of a search that runs, every few seconds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from pipeline.ledger import Ledger
from pipeline.search_config import GOALS
from pipeline.space import Values
from pipeline.tried import counts

log = logging.getLogger(__name__)
EVERY = 10.0  # seconds


class Live:
    """What is heard of trials while they run."""

    def __init__(self):
        self.rows: dict[int, dict[str, Any]] = {}  # by number: the last one
        self.running: set[int] = set()  # as far as it is known who
        self.places = 0  # that are taken


class Watching:
    """say() -> a few lines, if it is time: what was decided, the best so far, what runs."""

    def __init__(self, ledger: Ledger, live: Live, minutes: Callable[[], float]):
        self.ledger, self.live, self.minutes = ledger, live, minutes
        self.said = time.monotonic()

    def say(self, now: bool = False) -> None:
        if now or time.monotonic() - self.said > EVERY:
            self.said = time.monotonic()
            log.info("%s", self.text())

    def text(self) -> str:
        ledger, settings = self.ledger, self.ledger.search.settings
        found = counts(ledger.trials.values())
        words = [f"{found[name]} {name}" for name in ("finished", "stopped", "failed")]
        spent = f"{self.minutes():.1f} minutes spent"
        lines = [f"{len(ledger.asked)} trials: {', '.join(words)}, {self.live.places} running; {spent}"]
        if (best := self._best()) is not None:
            values = ", ".join(f"{name} {x:.4g}" for name, x in zip(settings.goals, ledger.results[best] or ()))
            lines.append(f"  best     trial {best}: {values}  {in_words(ledger.trials[best].values)}")
        for number in sorted(self.live.running & ledger.trials.keys()):
            row = self.live.rows.get(number, {})
            values = ", ".join(f"{goal} {row[goal]:.4g}" for goal in settings.goals if row.get(goal) is not None)
            at = f"epoch {row.get('epoch', 0)}" + (f", {values}" if values else "")
            lines.append(f"  running  trial {number}: {at}  {in_words(ledger.trials[number].values)}")
        return "\n".join(lines)

    def _best(self) -> int | None:
        sign = 1 if GOALS[self.ledger.search.settings.goals[0]] == "max" else -1
        there = {number: results for number, results in self.ledger.results.items() if results is not None}
        return max(there, key=lambda number: (sign * there[number][0], -number), default=None)


def in_words(values: Values) -> str:
    """`num_coefficients 4, solver euler@4`: the last word of each field's path is enough for one who knows the file."""
    return ", ".join(f"{path.rpartition('.')[2]} {_short(value)}" for path, value in values.items())


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
