"""Settings from the command line, and the processes that a run asks for."""

import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

from trainer.processes import spawn

Config = TypeVar("Config")


def read_settings(
    program: str, config: type[Config], description: str | None, arguments: Sequence[str]
) -> Config:
    """Returns the settings of a program; starts the processes and exits if there are several.

    Args:
        program: its name on the command line.
        config: a dataclass with a `DeviceConfig` as `devices`.
        description: the first part of what `--help` prints.
        arguments: what follows the name on the command line.
    """
    settings: Any = tyro.cli(
        config,
        prog=f"python -m trainer {program}",
        description=description,
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    if settings.devices.must_spawn:
        sys.exit(spawn([program, *arguments], settings.devices.processes))
    return settings
