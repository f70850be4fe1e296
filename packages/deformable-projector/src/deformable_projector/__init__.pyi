"""Public names of deformable_projector."""

from .alignment import AlignerOutput as AlignerOutput
from .alignment import MultiScaleDeformableCrossAttentionAlignment as MultiScaleDeformableCrossAttentionAlignment
from .config import DeformableProjectorConfig as DeformableProjectorConfig
from .config import ReferencePoints as ReferencePoints
from .config import SamplingBackend as SamplingBackend
from .projector import DeformableProjector as DeformableProjector
from .projector import ProjectedTokens as ProjectedTokens
from .projector import ProjectorType as ProjectorType
from .projector import build_projector as build_projector
from .projector import describe as describe
from .sampling import choose_backend as choose_backend
from .sampling import multi_scale_deformable_attention as multi_scale_deformable_attention
from .swin_conv import SwinConvProjector as SwinConvProjector
from .weights import AdaptedWeights as AdaptedWeights
from .weights import adapt_projector_weights as adapt_projector_weights
