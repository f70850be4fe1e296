"""Settings of the region feature extractor, free of torch so that `--help` stays fast."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields

ACTIVATIONS = ("gelu", "relu", "silu")
"""Names of the activations a block's feed-forward part may use."""


@dataclass(frozen=True)
class RegionEnhancerConfig:
    """The five keys of `region_enhancer_cfg`, with the guide's defaults.

    Attributes:
        num_heads: Attention heads; must divide the width of the features.
        num_transformer_layers: Self-attention layers over the regions of an image; 0 is legal.
        num_cross_attn_layers: Cross-attention layers from regions to image tokens; 0 is legal.
        dropout: Probability of dropping, in attention weights and before each residual sum.
        activation: One of `ACTIVATIONS`.
    """

    num_heads: int = 8
    num_transformer_layers: int = 6
    num_cross_attn_layers: int = 1
    dropout: float | int = 0.1
    activation: str = "gelu"

    def __post_init__(self) -> None:
        """Check types and ranges, so that a mistake is reported before anything is built."""
        _check_count("num_heads", self.num_heads, smallest=1)
        _check_count("num_transformer_layers", self.num_transformer_layers, smallest=0)
        _check_count("num_cross_attn_layers", self.num_cross_attn_layers, smallest=0)
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise ValueError(f"region_enhancer_cfg.dropout: expected a number in [0, 1), got {self.dropout!r}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"region_enhancer_cfg.activation: expected one of {', '.join(ACTIVATIONS)}, got {self.activation!r}"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "RegionEnhancerConfig":
        """Build the settings from a possibly partial dictionary; absent keys keep their defaults.

        Raises:
            ValueError: A key is unknown (the nearest known key is named) or a value is out of range.
        """
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise ValueError(f"region_enhancer_cfg: unknown key {key!r}{hint}; known keys are {', '.join(known)}")
        return cls(**values)  # ty: ignore[invalid-argument-type]  # __post_init__ checks the types


def _check_count(key: str, value: object, smallest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
        raise ValueError(f"region_enhancer_cfg.{key}: expected a whole number of at least {smallest}, got {value!r}")
