"""Everything that can be set: one nested dataclass, filled from a preset, YAML files and the command line."""

import re
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from deformable_projector.config import DeformableProjectorConfig
from region_training.settings import TrainingSettings

from psalm.data_paths import IMAGES_OF, PATH_KEYS, settle_paths
from psalm.modes import MODES, Mode

Device = Literal["auto", "cpu", "cuda"]
PromptType = Literal["point", "scribble", "box", "mask"]
Direction = Literal["target_to_reference", "reference_to_target"]


@dataclass(frozen=True)
class CriterionConfig:
    """The losses of PSALM, with the weights of its paper.

    Attributes:
        mask_weight: Weight of the masks' cross-entropy, in the loss and in the matching.
        dice_weight: Weight of the masks' dice loss, likewise.
        class_weight: Weight of the condition losses, and of class names in the matching.
        no_object_weight: Weight of a query without target in the cross-entropy over class names.
        num_points: Points at which masks are compared.
        oversample_ratio: So many times more points are drawn for the masks' loss, of which the least certain are kept.
        importance_ratio: Share of the points that are the least certain ones.
    """

    mask_weight: float = 5.0
    dice_weight: float = 5.0
    class_weight: float = 2.0
    no_object_weight: float = 0.1
    num_points: int = 12_544
    oversample_ratio: float = 3.0
    importance_ratio: float = 0.75

    def __post_init__(self) -> None:
        """Refuse points and shares that cannot be drawn."""
        if self.num_points < 1 or self.oversample_ratio < 1 or not 0 <= self.importance_ratio <= 1:
            raise ValueError(
                "model.criterion: expected num_points of 1 or more, oversample_ratio of 1 or more and importance_ratio "
                f"in [0, 1], got {self.num_points}, {self.oversample_ratio} and {self.importance_ratio}"
            )


@dataclass(frozen=True)
class ModelSettings:
    """The composition: Swin, projector, language model, pixel decoder, mask decoder, condition heads.

    Attributes:
        checkpoint: A PSALM folder to start from.
        mask2former: Weights of a Mask2Former with a Swin backbone: a detectron2 `.pkl`, or a Hugging Face folder or hub
            name.
        language_model: Folder or hub name of a causal language model.
        projector_weights: Weights of a projector: a baseline's `mm_projector.bin`, or adapted ones.
        tokenizer: Folder or hub name of a tokenizer; by default the language model's, or one made from the training
            texts.
        vocabulary_size: Size of a tokenizer made from the training texts.
        swin_type: Published size of the backbone: it sets the backbone, the projector and the pixel decoder.
        swin: Keys of `SwinConfig` that differ from the published size.
        language: Keys of the language model's configuration, with `model_type`, if it starts from random weights.
        mask_decoder: Keys of `Mask2FormerConfig` that differ from PSALM's.
        projector_type: The baseline, or the baseline with a deformable residual.
        projector: The deformable part of the projector.
        projector_outdim: Width of the projector's output; it has to be the language model's and is taken from it.
        projector_conv_dim: Width of the baseline's convolution.
        conv2_repeats: How often the baseline runs its second convolution; published weights were trained with 2.
        fpn_variant: Detail of the pixel decoder: `psalm` for published PSALM weights.
        num_mask_queries: Mask tokens, and so the largest number of masks in an image.
        region_geometry: Tell the model place and size of a prompted region; published weights know it from the image
            alone.
        region_levels: Tell the model what all maps of the backbone say under a prompt, and not the few image tokens
            alone, whose cells are larger than many things; published weights do without.
        mask_places: Tell mask tokens and pixels where they are, so that a small model soon tells things that look alike
            apart; published weights do without.
        cross_image: Directions in which target and reference image look at each other in mode cross_image.
        condition_tokens: Let every class name, sentence and region look at its image through the deformable projector,
            and read what it finds as one more token behind the image's.
        max_length: Longest token sequence; a longer one is an error.
        criterion: The losses.
    """

    checkpoint: str | None = None
    mask2former: str | None = None
    language_model: str | None = None
    projector_weights: str | None = None
    tokenizer: str | None = None
    vocabulary_size: int = 600
    swin_type: Literal["base", "large"] = "base"
    swin: dict[str, Any] | None = None
    language: dict[str, Any] | None = None
    mask_decoder: dict[str, Any] | None = None
    projector_type: Literal["swin_conv", "deformable"] = "deformable"
    projector: DeformableProjectorConfig = field(default_factory=DeformableProjectorConfig)
    projector_outdim: int | None = None
    projector_conv_dim: int = 2048
    conv2_repeats: Literal[1, 2] = 1
    fpn_variant: Literal["mask2former", "psalm"] = "mask2former"
    num_mask_queries: int = 100
    region_geometry: bool = False
    region_levels: bool = False
    mask_places: bool = False
    cross_image: list[Direction] = field(default_factory=lambda: ["target_to_reference", "reference_to_target"])
    condition_tokens: bool = False
    max_length: int = 2048
    criterion: CriterionConfig = field(default_factory=CriterionConfig)

    def __post_init__(self) -> None:
        """Refuse two sources for the same weights, and published weights of another size."""
        parts = {name: vars(self)[name] for name in ("mask2former", "language_model") if vars(self)[name] is not None}
        if self.checkpoint is not None and parts:
            raise ValueError(
                f"model.checkpoint ({self.checkpoint!r}) holds the whole model; give it or parts, not both: got {parts}"
            )
        published = re.match(r"facebook/mask2former-swin-(\w+)-", self.mask2former or "")
        if published and published[1] != self.swin_type and "embed_dim" not in (self.swin or {}):
            raise ValueError(
                f"model.swin_type (--swin_type) is {self.swin_type!r}, but model.mask2former (--vision_tower) is "
                f"{self.mask2former!r}, whose backbone is {published[1]!r}; change one of them"
            )


@dataclass(frozen=True)
class SyntheticSettings:
    """Size of the synthetic world of panoptic scenes.

    Attributes:
        train_scenes: Scenes to train on.
        eval_scenes: Held-out scenes.
        image_size: Longer side of the images in pixels.
        seed: The world is a pure function of these numbers.
    """

    train_scenes: int = 600
    eval_scenes: int = 80
    image_size: int = 128
    seed: int = 0


@dataclass(frozen=True)
class DataSettings:
    """Where the data sets are. Every one whose path is given joins the mix; `{split}` in a path is the split's name.

    A path that ends with ` (if there)`, as in the presets, is taken where it exists and else left out with a warning. A
    file of the training split (`refcoco_train.json`) is read as `refcoco_{split}.json` where one of another split lies
    beside it.

    Attributes:
        synthetic: Write a small synthetic world to `synthetic_root` if there is nothing yet; another one is refused.
        synthetic_root: Folder of the synthetic world.
        coco_root: Folder of COCO, for panoptic, semantic and instance segmentation (`--panoptic_json_path`).
        ref_coco: RefCOCO JSON of this project's ancestors (`--ref_coco_path`).
        ref_coco_plus: RefCOCO+ JSON.
        ref_coco_g: RefCOCOg JSON.
        refcoco_images: Folder of the RefCOCO images (train2014).
        region_json: Interactive JSON (`--region_json_path`).
        region_images: Folder of its images.
        cross_image_json: Cross-image JSON, in any of the three dialects (`--region_cross_json_path`).
        cross_image_images: Folder of its images.
        own_json: Own data in the plain JSON of docs/data-formats.md.
        own_images: Folder of its images.
        seg_task: The reading of `coco_root` to train (`--seg_task`), and the mode whose score is the headline; by
            default COCO is read in all three ways.
        cross_image_seg_task: Train on image pairs (`--cross_image_seg_task`); by default where their path is given.
        modes: What to train and evaluate; by default all that the given paths allow.
        mode_ratios: How often a mode is seen, against 1 for the others (`--task_ratio`).
        batches: Samples of all modes in one batch, or one mode per optimizer step.
        train_split: Name of the split to train on.
        eval_split: Name of the split to evaluate on.
        image_size: Side of the model's square input in pixels.
        region_mask_type: Prompts to draw from in training, separated by `||` (`--region_mask_type`): point, scribble,
            box and mask, also with `_visual_prompt_mask` behind them.
        point_radius: Of the dot that a point is drawn as, in pixels of the image on disk; own data may say otherwise.
        scribble_radius: Half the width of the line that a scribble is drawn as, likewise.
        ref_mode: One sentence per sample, or all sentences of an object joined, as published PSALM was trained.
        augment: Large-scale jitter and flips, where the mode allows them.
        exclude_ref_eval_images: Leave out of training the images of RefCOCO's val and test splits; in pairs and own
            data they are known by COCO's file names.
        mmconv_path: Chat data (`--mmconv_path`); not trained here, and refused.
        on_error: Stop at a bad record, or skip and count it.
        max_bad_fraction: With skip, stop when more than this fraction of records is bad.
    """

    synthetic: SyntheticSettings | None = None
    synthetic_root: str = "data/psalm-tiny"
    coco_root: str | None = None
    ref_coco: str | None = None
    ref_coco_plus: str | None = None
    ref_coco_g: str | None = None
    refcoco_images: str | None = None
    region_json: str | None = None
    region_images: str | None = None
    cross_image_json: str | None = None
    cross_image_images: str | None = None
    own_json: str | None = None
    own_images: str | None = None
    seg_task: Literal["panoptic", "semantic", "instance", "referring", "region"] | None = None
    cross_image_seg_task: bool | None = None
    modes: list[Mode] = field(default_factory=lambda: list(MODES))
    mode_ratios: dict[str, float] = field(default_factory=dict)
    batches: Literal["mixed", "single"] = "mixed"
    train_split: str = "train"
    eval_split: str = "val"
    image_size: int = 1024
    region_mask_type: str = "point||scribble||box||mask"
    point_radius: int = 10
    scribble_radius: int = 5
    ref_mode: Literal["per_sentence", "joined"] = "per_sentence"
    augment: bool = False
    exclude_ref_eval_images: bool = False
    mmconv_path: str | None = None
    on_error: Literal["raise", "skip"] = "raise"
    max_bad_fraction: float = 0.01

    def __post_init__(self) -> None:
        """Settle the paths, and refuse what would be read in vain."""
        keys = (*PATH_KEYS, *IMAGES_OF.values())
        given = {key: vars(self)[key] for key in keys}
        settled = settle_paths(given, train_split=self.train_split, eval_split=self.eval_split)
        for key, path in settled.items():
            object.__setattr__(self, key, path)
        unknown = sorted(set(self.mode_ratios) - set(MODES))
        if unknown or any(not ratio >= 0 for ratio in self.mode_ratios.values()):
            raise ValueError(
                f"data.mode_ratios: expected numbers of 0 or more for {', '.join(MODES)}, got {self.mode_ratios}"
            )
        if self.mmconv_path is not None:
            raise ValueError(
                f"data.mmconv_path (--mmconv_path): got {self.mmconv_path!r}; conversations without masks are not "
                "trained here, leave the flag out"
            )
        if min(self.point_radius, self.scribble_radius) < 0:
            raise ValueError(
                "data.point_radius and data.scribble_radius: expected 0 or more pixels, got "
                f"{self.point_radius} and {self.scribble_radius}"
            )
        _ = self.prompt_types

    @property
    def prompt_types(self) -> tuple[PromptType, ...]:
        """`region_mask_type`, taken apart.

        Raises:
            ValueError: A name is unknown.
        """
        known = get_args(PromptType)
        names = [name.strip().removesuffix("_visual_prompt_mask") for name in self.region_mask_type.split("||")]
        if not set(names) <= set(known):
            raise ValueError(
                f"data.region_mask_type (--region_mask_type): got {self.region_mask_type!r}, expected some of "
                f"{', '.join(known)} separated by '||'"
            )
        return tuple(name for name in known if name in names)

    @property
    def pens(self) -> dict[str, int]:
        """Radius of the pen by type of prompt."""
        return {"point": self.point_radius, "scribble": self.scribble_radius}

    @property
    def wanted_modes(self) -> tuple[Mode, ...]:
        """`modes`, as `seg_task` and `cross_image_seg_task` leave them."""
        readings = ("panoptic", "semantic", "instance")
        left_out: set[str] = set()
        if self.seg_task is not None:
            kept = self.seg_task if self.seg_task in readings else "panoptic"
            left_out = {reading for reading in readings if reading != kept}
        if self.cross_image_seg_task is False:
            left_out.add("cross_image")
        return tuple(mode for mode in MODES if mode in self.modes and mode not in left_out)


@dataclass(frozen=True)
class EvaluationSettings:
    """How a model is evaluated.

    Attributes:
        batch_size: Samples per batch.
        max_samples: Samples per mode at most, taken at equal steps; 0 takes all.
        score_threshold: Panoptic segments below this score are left out.
        overlap_threshold: So are those of which less than this share of pixels is left.
        target_threshold: Referring masks below this score are no target (gRefCOCO's N-acc).
        match_threshold: In cross-image pairs with several targets, masks above this score are united.
        prompt_agreement: Of a region's masks, prefer those that lie where it was shown; PSALM goes by the score alone.
        baselines: Also score the untrained model and the trivial answers.
        num_pictures: Pictures per mode in the report.
    """

    batch_size: int = 8
    max_samples: int = 0
    score_threshold: float = 0.8
    overlap_threshold: float = 0.8
    target_threshold: float = 0.5
    match_threshold: float = 0.6
    prompt_agreement: bool = True
    baselines: bool = True
    num_pictures: int = 6


@dataclass(frozen=True)
class Settings:
    """All settings of a run.

    Attributes:
        run_dir: Folder of the run; by default `runs/psalm-<preset>`.
        model: The composition.
        data: The data sets.
        training: Optimisation, precision, DeepSpeed, checkpoints.
        evaluation: Held-out evaluation.
    """

    run_dir: str | None = None
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
