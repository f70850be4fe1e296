"""Memory of one rank while a model trains, by what it is for, for each ZeRO stage.

What DeepSpeed holds was read off its engine: a float32 copy of what is trained stands beside Adam's two moments, for
float32 weights too as soon as a stage partitions anything. Bytes of weights, gradients and optimizer are exact up to
padding; activations are an estimate.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lmms.model_sizes import ModelSizes

STAGES = (0, 1, 2, 3)
COMPONENTS = ("weights", "gradients", "optimizer", "teacher", "activations", "buffers")
MASTER_BYTES, ADAM_BYTES, BUILT_BYTES = 4, 8, 4
_BUCKET = 500_000_000
"""DeepSpeed's own size of a bucket, in elements, where a configuration says nothing."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one rank.

    Attributes:
        weights: Of the model.
        gradients: Of what is trained.
        optimizer: Adam's moments, and the float32 copy of what is trained.
        teacher: Of a teacher with weights of its own, in the run's precision.
        activations: What forward keeps for backward.
        buffers: Buckets in which gradients travel, and weights that ZeRO-3 gathers.
        offloaded: Bytes in main memory that the DeepSpeed configuration keeps there.
    """

    weights: int
    gradients: int
    optimizer: int
    teacher: int
    activations: int
    buffers: int
    offloaded: int = 0

    @property
    def total(self) -> int:
        """Bytes on the device."""
        return sum(vars(self)[name] for name in COMPONENTS)

    def as_plain(self) -> dict[str, int]:
        """The bytes by name, with their sum, for JSON."""
        return asdict(self) | {"total": self.total}

    def largest_first(self) -> list[str]:
        """The components with anything in them, the largest first."""
        return sorted((name for name in COMPONENTS if vars(self)[name]), key=lambda name: -vars(self)[name])


def estimate_memory(
    sizes: ModelSizes,
    deepspeed: Mapping[str, Any],
    *,
    world_size: int,
    precision: str,
    activations: int,
    device: str,
) -> MemoryEstimate:
    """Bytes of one rank under a DeepSpeed configuration.

    Args:
        sizes: Elements of the model.
        deepspeed: The configuration; its `zero_optimization.stage` decides what is partitioned.
        world_size: Ranks that share what is partitioned.
        precision: "bf16" or "fp32".
        activations: Bytes that `estimate_activations` gave.
        device: "cpu" or "cuda". Buckets on a CPU take the memory that is written to alone.
    """
    zero: Mapping[str, Any] = deepspeed.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    value_bytes = 2 if precision == "bf16" else 4
    everything, trained = sizes.num_parameters, sizes.num_trained
    share = {
        kind: world_size if stage >= at else 1 for kind, at in (("optimizer", 1), ("gradients", 2), ("weights", 3))
    }
    sums_in_float32 = deepspeed.get("data_types", {}).get("grad_accum_dtype") == "fp32" and stage >= 2
    has_copy = precision == "bf16" or stage >= 1
    weights = everything * value_bytes // share["weights"]
    optimizer = trained * (ADAM_BYTES + MASTER_BYTES * has_copy) // share["optimizer"]
    offloaded = 0
    if zero.get("offload_optimizer", {}).get("device", "none") != "none":
        offloaded, optimizer = offloaded + optimizer, 0
    if zero.get("offload_param", {}).get("device", "none") != "none":
        offloaded, weights = offloaded + weights, 0
    return MemoryEstimate(
        weights=weights,
        gradients=trained * (4 if sums_in_float32 else value_bytes) // share["gradients"],
        optimizer=optimizer,
        teacher=sizes.teacher * value_bytes,
        activations=activations,
        buffers=_buffers(sizes, zero, world_size=world_size, device=device) * value_bytes,
        offloaded=offloaded,
    )


def built_bytes(sizes: ModelSizes) -> int:
    """Main memory that each rank needs while it builds the model, whole and in float32."""
    return sizes.num_parameters * BUILT_BYTES


def checkpoint_bytes(sizes: ModelSizes, precision: str) -> int:
    """Bytes of one checkpoint of all ranks: the weights, and what the optimizer holds."""
    return sizes.num_parameters * (2 if precision == "bf16" else 4) + sizes.num_trained * (MASTER_BYTES + ADAM_BYTES)


def _buffers(sizes: ModelSizes, zero: Mapping[str, Any], *, world_size: int, device: str) -> int:
    """Elements of what passes through."""
    stage = zero.get("stage", 0)
    if stage == 0:
        return 0
    bucket = _elements(zero, "reduce_bucket_size", _BUCKET)
    if device == "cpu":
        bucket = min(bucket, sizes.num_trained)
    buckets = bucket * (2 if stage < 3 and zero.get("overlap_comm", False) else 1)
    if stage < 3 or world_size == 1:
        return buckets
    prefetched = _elements(zero, "stage3_prefetch_bucket_size", _BUCKET // 10)
    return buckets + min(sizes.num_parameters, prefetched + sizes.largest_tensor)


def _elements(zero: Mapping[str, Any], key: str, default: int) -> int:
    """A size from the configuration; "auto" is filled in later, with less than the default."""
    value = zero.get(key, default)
    return default if value == "auto" else int(value)
