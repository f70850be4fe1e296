"""Weights of a baseline projector, renamed for the deformable one.

The baseline becomes the part `base`; the part `align`, which the baseline lacks, keeps its fresh weights and adds zero.
So the adapted projector computes exactly what the baseline did. PSALM's published files hold parameters only: the
running statistics of batch normalisation are not among them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from .projector import DeformableProjector

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Buffers of batch normalisation, which files of named parameters lack."""


@dataclass(frozen=True)
class AdaptedWeights:
    """Weights that a `DeformableProjector` loads strictly.

    Attributes:
        weights: Every name of the projector, `base.*` and `align.*`.
        metadata: Sizes and where the weights are from, as text, for the header of a safetensors file.
        missing_statistics: Running statistics that the file lacked. They are those of a fresh projector (mean 0,
            variance 1): in training nothing depends on them, and before evaluation they must be measured, for instance
            by `torch.optim.swa_utils.update_bn(coarsest_maps, projector.base)`.
    """

    weights: dict[str, Tensor]
    metadata: dict[str, str]
    missing_statistics: tuple[str, ...]


def adapt_projector_weights(
    weights: Mapping[str, Tensor], projector: DeformableProjector, *, prefix: str = "mm_projector."
) -> AdaptedWeights:
    """Fit weights of a baseline projector to a deformable one.

    Args:
        weights: A baseline's `mm_projector.bin`, a whole PSALM checkpoint, a bare baseline, or weights adapted before.
        projector: What they are for; it is not changed. Whether the second convolution runs twice cannot be told from
            weights: PSALM's need a projector with `conv2_repeats=2`.
        prefix: What stands before a projector's own names, wherever in the name it comes. Names without it are left
            out, unless no name has it.

    Returns:
        Weights for `projector.load_state_dict(weights)`, metadata, and the statistics that were missing.

    Raises:
        ValueError: No projector is among the weights or two are, names are missing or unknown, or shapes differ.
    """
    found = _own_names(weights, prefix)
    adapted = any(name.startswith("align.") for name in found)
    if not any(name.startswith("base.") for name in found):
        found = {name if name.startswith("align.") else f"base.{name}": tensor for name, tensor in found.items()}
    fresh = projector.state_dict()
    missing = [name for name in fresh if name not in found and (adapted or name.startswith("base."))]
    statistics = tuple(name for name in missing if name.endswith(STATISTICS))
    _refuse(
        {
            "missing": [name for name in missing if name not in statistics],
            "unknown": [name for name in found if name not in fresh],
            "another shape": [
                f"{name}: weights {list(tensor.shape)}, projector {list(fresh[name].shape)}"
                for name, tensor in found.items()
                if name in fresh and tensor.shape != fresh[name].shape
            ],
        }
    )
    complete = {name: found.get(name, tensor).detach().clone() for name, tensor in fresh.items()}
    return AdaptedWeights(complete, _metadata(projector, adapted), statistics)


def _own_names(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The projector's weights under its own names."""
    chosen = {name: tensor for name, tensor in weights.items() if prefix in name} or dict(weights)
    own: dict[str, Tensor] = {}
    for name, tensor in chosen.items():
        own_name = name.rpartition(prefix)[2]
        if own_name in own:
            raise ValueError(f"two weights are {own_name!r} of a projector, one of them {name!r}; give one projector")
        own[own_name] = tensor
    if not any(name.removeprefix("base.").startswith(("layer1.", "fc.")) for name in own):
        shown = ", ".join(repr(name) for name in list(weights)[:3]) or "nothing"
        raise ValueError(
            f"no projector among {len(weights)} weights: expected names like {prefix + 'layer1.0.conv1.weight'!r}, "
            f"got {shown}"
        )
    return own


def _refuse(problems: Mapping[str, list[str]]) -> None:
    lines = [f"{kind}: {name}" for kind, names in problems.items() for name in names]
    if lines:
        raise ValueError(
            "projector weights do not fit; is it the same backbone (Swin-B or Swin-L), language model and sizes?\n"
            + "\n".join(lines)
        )


def _metadata(projector: DeformableProjector, adapted: bool) -> dict[str, str]:
    base, config = projector.base, projector.config
    return {
        "projector_type": "deformable",
        "adapted_from": "deformable" if adapted else "swin_conv",
        "vision_dims": ",".join(str(dim) for dim in projector.align.vision_dims),
        "output_dim": str(base.output_dim),
        "conv_dim": str(base.conv_dim),
        "conv2_repeats": str(base.conv2_repeats),
        "hidden_dim": str(config.hidden_dim),
        "num_heads": str(config.num_heads),
        "num_points": str(config.num_points),
    }
