"""From the command line to settings, in this process or in those that are to share the work."""

import sys
from typing import Any, TypeVar

import tyro

from common.processes import spawn

Config = TypeVar("Config")


def read_settings(config: type[Config], description: str | None) -> Config:
    """Reads the settings of an example; one that asks for several processes starts them and ends.

    Args:
        config: a dataclass with a `DeviceConfig` as `devices`.
        description: what `--help` says first.
    """
    settings: Any = tyro.cli(
        config,
        description=description,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    if settings.devices.must_spawn:
        sys.exit(spawn(sys.argv, settings.devices.processes))
    return settings
