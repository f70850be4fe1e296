"""The settings for records that cannot be read; no torch, so that applications nest them in their configuration."""

from dataclasses import dataclass
from typing import Literal

from region_training.settings import ConfigError


@dataclass(frozen=True)
class BadRecordPolicy:
    """What to do with a record that cannot be read.

    Attributes:
        on_error: `raise` stops and names the record; `skip` puts a neighbour in its place and counts it.
        max_bad_fraction: With `skip`, more bad records than this share of all stop the run.
    """

    on_error: Literal["raise", "skip"] = "raise"
    max_bad_fraction: float = 0.01

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: A value is out of range.
        """
        if self.on_error not in ("raise", "skip"):
            raise ConfigError(f"on_error is {self.on_error!r}, expected 'raise' or 'skip'")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ConfigError(f"max_bad_fraction is {self.max_bad_fraction}, expected 0 to 1")
