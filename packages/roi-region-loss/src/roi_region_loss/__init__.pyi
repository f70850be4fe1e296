"""Public names of roi_region_loss."""

from .box_files import BoxFile as BoxFile
from .box_files import write_box_file as write_box_file
from .box_formats import BoxFormat as BoxFormat
from .captions import RegionCaptionLoss as RegionCaptionLoss
from .config import DropReason as DropReason
from .config import RegionLossConfig as RegionLossConfig
from .contrastive import RegionContrastiveLoss as RegionContrastiveLoss
from .contrastive import RegionLossOutput as RegionLossOutput
from .contrastive import unit_rows as unit_rows
from .coverage import BoxCoverage as BoxCoverage
from .features import extract_region_features as extract_region_features
from .filtering import FilteredPairs as FilteredPairs
from .filtering import filter_pairs as filter_pairs
from .filtering import transform_boxes as transform_boxes
from .importers import BoxSelection as BoxSelection
from .importers import ImportReport as ImportReport
from .importers import import_coco as import_coco
from .importers import import_yolo as import_yolo
from .negatives import box_overlap as box_overlap
from .pairing import ImageBoxes as ImageBoxes
from .pairing import RegionPairs as RegionPairs
from .pairing import pair_boxes as pair_boxes
from .region_loss import compute_region_loss as compute_region_loss
from .schedule import region_weight as region_weight
