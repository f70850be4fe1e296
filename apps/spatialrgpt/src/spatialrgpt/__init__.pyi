"""Public names of spatialrgpt."""

from .collate import RegionDataCollator as RegionDataCollator
from .config import Settings as Settings
from .configuration import SpatialRGPTConfig as SpatialRGPTConfig
from .data import RegionDataset as RegionDataset
from .model import SpatialRGPTForConditionalGeneration as SpatialRGPTForConditionalGeneration
from .model import SpatialRGPTOutput as SpatialRGPTOutput
from .predict import answer_question as answer_question
from .processing import SpatialRGPTProcessor as SpatialRGPTProcessor
from .synthetic import write_world as write_world
