"""The best evaluation so far, and whether training should stop."""

from typing import Any


class EarlyStopping:
    """Records the best value of the monitor, and counts evaluations without improvement.

    Of equal values the earliest is the best.

    Args:
        mode: `max` or `min`.
        patience: consecutive evaluations without an improvement of more than `min_delta` after which to
            stop; None never stops.
        min_delta: the improvement over the last such improvement that resets the count.
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
        """Record the monitor of an evaluation; None is no improvement. Return whether it is the best."""
        if self._improves(value, self._reference, self._min_delta):
            self._reference, self._waited = value, 0
        else:
            self._waited += 1
        is_best = self._improves(value, self.best, 0.0)
        if is_best:
            self.best, self.best_step = value, step
        return is_best

    @property
    def patience_left(self) -> int | None:
        """Further evaluations without an improvement after which to stop; None: any number."""
        return None if self._patience is None else max(0, self._patience - self._waited)

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

    def _improves(self, value: float | None, over: float | None, delta: float) -> bool:
        if value is None:
            return False
        return over is None or self._sign * (value - over) > delta
