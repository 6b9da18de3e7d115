"""Starts the processes of one training on this machine and ends them together."""

import socket
import subprocess
from collections.abc import Sequence

from trainer.errors import TRAINER

POLL_SECONDS = 0.2


def spawn(arguments: Sequence[str], count: int) -> int:
    """Runs the trainer again in `count` processes that share one mesh.

    The first writes to the terminal; the others are silent unless they fail.

    Args:
        arguments: those of the command line, beginning with the name of the program.

    Returns:
        The exit status: 0, or that of the first process that failed. The others are then killed,
        because they would wait for it forever.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    running = [
        subprocess.Popen(
            [*TRAINER, *arguments, "--coordinator", address, "--process-id", str(index)],
            stdout=None if index == 0 else subprocess.DEVNULL,
        )
        for index in range(count)
    ]
    try:
        return _wait(running)
    except KeyboardInterrupt:  # the others got the signal too; they save and exit
        return _wait(running)
    finally:
        for process in running:
            process.kill()


def _wait(running: Sequence[subprocess.Popen[bytes]]) -> int:
    waiting = list(running)
    while waiting:
        for process in list(waiting):
            try:
                status = process.wait(POLL_SECONDS)
            except subprocess.TimeoutExpired:
                continue
            if status:
                return status
            waiting.remove(process)
    return 0
