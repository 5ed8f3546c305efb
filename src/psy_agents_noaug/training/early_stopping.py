"""Which evaluation was best, and whether to go on."""

from typing import Any


class EarlyStopping:
    """Keeps the best value of the monitor (ties keep the earliest step) and counts the patience.

    Args:
        mode: `max` or `min`.
        patience: evaluations in a row without a gain of more than `min_delta`; None never stops.
        min_delta: the gain over the last such gain that resets the count.
    """

    def __init__(self, *, mode: str, patience: int | None, min_delta: float = 0.0) -> None:
        self._sign = 1.0 if mode == "max" else -1.0
        self._patience = patience
        self._min_delta = min_delta
        self.best: float | None = None
        self.best_step: int | None = None
        self._reference: float | None = None
        self._waited = 0

    def update(self, value: float | None, *, step: int) -> bool:
        """Take an evaluation's monitor; an undefined one is no gain. Return whether it is the best."""
        if self._gains(value, self._reference, self._min_delta):
            self._reference, self._waited = value, 0
        else:
            self._waited += 1
        is_best = self._gains(value, self.best, 0.0)
        if is_best:
            self.best, self.best_step = value, step
        return is_best

    @property
    def should_stop(self) -> bool:
        return self._patience is not None and self._waited >= self._patience

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": self.best,
            "best_step": self.best_step,
            "reference": self._reference,
            "waited": self._waited,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.best_step = state["best"], state["best_step"]
        self._reference, self._waited = state["reference"], state["waited"]

    def _gains(self, value: float | None, over: float | None, delta: float) -> bool:
        if value is None:
            return False
        return over is None or self._sign * (value - over) > delta
