"""Ctrl-C and SIGTERM as a flag that the training loop looks at between steps."""

import signal
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Context manager that records the first signal; a second signal has its usual effect."""

    received: signal.Signals | None = None

    def __enter__(self) -> Self:
        self._before: dict[signal.Signals, Any] = {
            number: signal.signal(number, self._note) for number in SIGNALS
        }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
