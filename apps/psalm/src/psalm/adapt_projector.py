"""`psalm adapt-projector`: a baseline projector's weights as a deformable projector's, which starts as the baseline.

The result is one file of safetensors whose header says the sizes it was made for. A model reads it by
`model.projector_weights` (`--pretrain_mm_mlp_adapter`) and is then fine-tuned at a low learning rate.
"""

import logging
from pathlib import Path

import torch
from deformable_projector import DeformableProjector, adapt_projector_weights
from safetensors.torch import save_file

from psalm.configuration import STAGES, SWIN_SIZES
from psalm.projector_weights import PUBLISHED_REPEATS, ProjectorWeights, open_projector_weights
from psalm.published import NO_STATISTICS
from psalm.verbs import AdaptProjectorSettings

logger = logging.getLogger(__name__)


def adapt_projector(settings: AdaptProjectorSettings) -> None:
    """Write the weights of a deformable projector that computes what a baseline does.

    The widths of the tokens and of the convolution are read off the weights. The same input gives the same weights.

    Raises:
        ValueError: The output is no .safetensors, the source holds no projector, it belongs to another backbone, or it
            was trained with another number of convolutions.
    """
    if Path(settings.output).suffix != ".safetensors":
        raise ValueError(f"output: got {settings.output!r}, expected a file that ends with .safetensors")
    opened = open_projector_weights(settings.source)
    weights = opened.weights
    last = weights.get("fc.weight", weights.get("base.fc.weight"))
    if last is None:
        raise ValueError(
            f"{settings.source!r}: no projector among {len(weights) + opened.num_others} tensors, expected names like "
            f"'model.mm_projector.fc.weight' or 'projector.fc.weight', got {', '.join(list(weights)[:3])}"
        )
    output_dim, conv_dim = last.shape
    embed_dim = SWIN_SIZES[settings.swin_type]["embed_dim"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        projector = DeformableProjector(
            [embed_dim * 2**stage for stage in range(len(STAGES))],
            output_dim,
            settings.projector,
            conv_dim,
            conv2_repeats=_repeats(settings, opened),
        )
    try:
        adapted = adapt_projector_weights(weights, projector)
    except ValueError as error:
        raise ValueError(
            f"{settings.source!r} with swin_type {settings.swin_type!r}, whose coarsest map has "
            f"{projector.base.in_dim} channels: {error}"
        ) from error
    Path(settings.output).parent.mkdir(parents=True, exist_ok=True)
    save_file(adapted.weights, settings.output, metadata=adapted.metadata | {"swin_type": settings.swin_type})
    sizes = ", ".join(f"{key} {value}" for key, value in sorted(adapted.metadata.items()))
    logger.info("%s: %d tensors (swin_type %s, %s)", settings.output, len(adapted.weights), settings.swin_type, sizes)
    if adapted.missing_statistics:
        logger.warning(NO_STATISTICS, settings.source, len(adapted.missing_statistics))


def _repeats(settings: AdaptProjectorSettings, opened: ProjectorWeights) -> int:
    """How often the baseline runs its second convolution."""
    told, found = settings.conv2_repeats, opened.conv2_repeats
    if told is not None and found is not None and told != found:
        raise ValueError(
            f"conv2_repeats: got {told}, but {settings.source!r} was trained with {found}; leave it out, it is known"
        )
    return told or found or PUBLISHED_REPEATS
