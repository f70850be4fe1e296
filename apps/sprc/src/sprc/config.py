"""Everything that can be set: one nested dataclass, filled from a preset, YAML files and the command line."""

from dataclasses import dataclass, field
from typing import Any, Literal

from region_training.settings import TrainingSettings
from roi_region_loss.config import RegionLossConfig

DatasetName = Literal["CIRR", "FashionIQ", "OACIRR"]
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class ModelSettings:
    """The composition: a BLIP-2 vision tower and Q-Former, SPRC's prompts, and the region branch.

    Attributes:
        blip2: Folder or hub name of a Hugging Face BLIP-2 retrieval model (`Salesforce/blip2-itm-vit-g`) to start from.
        checkpoint: An SPRC folder to start from, instead of `blip2`.
        vision: Keys of `Blip2VisionConfig`: the sizes of a tower that starts from random weights, or what differs from
            the pretrained one (`dtype: bfloat16`).
        qformer: Keys of `Blip2QFormerConfig`, likewise.
        tokenizer: Folder or hub name of a BERT tokenizer; by default the pretrained model's, or one made from the
            training captions.
        vocabulary_size: Size of a tokenizer made from the training captions.
        num_query_tokens: Learned queries, and as many soft prompts.
        image_text_hidden_size: Width of the space in which queries and targets meet.
        max_caption_tokens: Captions are padded or cut to this many tokens.
        use_region_loss: Pull corresponding regions of reference and target together.
        region_mode: Where region features come from: the Q-Former that retrieval uses, the tower's tokens (the guide's
            literal form, which trains almost nothing), or the value path of the tower's last block (FG-CLIP).
        region_queries: With `qformer`, how many of the queries read a region. A region costs nearly in proportion to
            them, and is a small image with less to read.
        region_loss: Pairing, negatives, temperature and schedule of the region loss.
        loss_rtc: Weight of the relative contrastive loss.
        loss_align: Weight of the alignment of prompts and fused queries.
        loss_region: Weight of the region loss.
    """

    blip2: str | None = None
    checkpoint: str | None = None
    vision: dict[str, Any] | None = None
    qformer: dict[str, Any] | None = None
    tokenizer: str | None = None
    vocabulary_size: int = 512
    num_query_tokens: int = 32
    image_text_hidden_size: int = 256
    max_caption_tokens: int = 32
    use_region_loss: bool = False
    region_mode: Literal["qformer", "tokens", "value"] = "qformer"
    region_queries: int = 8
    region_loss: RegionLossConfig = field(default_factory=RegionLossConfig)
    loss_rtc: float = 0.4
    loss_align: float = 0.4
    loss_region: float = 0.5

    def __post_init__(self) -> None:
        """Refuse two sources for the same weights, and more queries for a region than there are."""
        if self.blip2 is not None and self.checkpoint is not None:
            raise ValueError(f"give `blip2` ({self.blip2!r}) or `checkpoint` ({self.checkpoint!r}), not both")
        # A pretrained model has its own number of queries, which is known when it is read.
        is_new = self.blip2 is None and self.checkpoint is None
        if is_new and self.region_mode == "qformer" and not 1 <= self.region_queries <= self.num_query_tokens:
            raise ValueError(
                f"model.region_queries is {self.region_queries}, expected 1 to {self.num_query_tokens} "
                "(model.num_query_tokens)"
            )


@dataclass(frozen=True)
class SyntheticSettings:
    """Size of the synthetic world of edited scenes.

    Attributes:
        train_scenes: Scenes to train on.
        eval_scenes: Held-out scenes.
        edits: Edits, and so triplets, of each scene.
        image_size: Shorter side of the canvases in pixels.
        seed: The world is a pure function of these numbers.
    """

    train_scenes: int = 800
    eval_scenes: int = 100
    edits: int = 5
    image_size: int = 96
    seed: int = 0


@dataclass(frozen=True)
class DataSettings:
    """Where the triplets are, and how images and boxes are read.

    Attributes:
        root: Folder of the data set.
        dataset: Which data set it is; CIRR, FashionIQ and OACIRR have their own formats and scores.
        train_split: Name of the split to train on.
        eval_split: Name of the split to evaluate on.
        synthetic: Write a small synthetic world to `root` if there is nothing yet.
        transform: How an image becomes square: padded up to a ratio of 1.25 and cropped, padded to a square, or
            squashed.
        upstream_order: Turn images RGB after they are resized and leave them as they are stored, as the published SPRC
            does, instead of RGB and upright first. Palette and transparent images and those with an EXIF orientation
            differ.
        on_missing: Stop and list image files that are missing, or drop their triplets, and the images from the gallery;
            scores are then not comparable with others'.
        box_file: JSON file of boxes, by image or by pair, needed by the region loss; `{split}` in it stands for the
            split's name.
        box_format: Coordinates of the box file.
        min_coverage: Stop when a smaller share of the training triplets has a pair of boxes with a weight, or of their
            images (or triplets) an entry in the box file. For a file that is meant to be sparse, lower it.
        token_cache: Folder that keeps the frozen tower's tokens of every image; none by default.
        gallery: FashionIQ's gallery: the whole split, or the union of candidates and targets.
        on_error: Stop at a bad record, or skip and count it.
        max_bad_fraction: With skip, stop when more than this fraction of records is bad.
    """

    root: str = "data/cirr"
    dataset: DatasetName = "CIRR"
    train_split: str = "train"
    eval_split: str = "val"
    synthetic: SyntheticSettings | None = None
    transform: Literal["targetpad", "squarepad", "resize"] = "targetpad"
    upstream_order: bool = False
    on_missing: Literal["raise", "drop"] = "raise"
    box_file: str | None = None
    box_format: Literal["xyxy_norm", "xyxy_pixel", "xywh_pixel", "cxcywh_norm"] = "xyxy_norm"
    min_coverage: float = 0.5
    token_cache: str | None = None
    gallery: Literal["split", "union"] = "split"
    on_error: Literal["raise", "skip"] = "raise"
    max_bad_fraction: float = 0.01

    def __post_init__(self) -> None:
        """There is a small world for two of the data sets, and a share lies in [0, 1]."""
        if not 0.0 <= self.min_coverage <= 1.0:
            raise ValueError(f"data.min_coverage is {self.min_coverage!r}, expected a share in [0, 1]")
        if self.synthetic is not None and self.dataset == "OACIRR":
            raise ValueError("data.synthetic: there is no synthetic OACIRR, expected data.dataset CIRR or FashionIQ")


@dataclass(frozen=True)
class EvaluationSettings:
    """How a model is evaluated.

    Attributes:
        batch_size: Images or queries per batch.
        ablations: Also score the text alone, the image alone and captions of other queries.
        num_cases: Queries on the contact sheet, half of them the worst.
        top_k: Retrieved images shown per query.
        save_best: Keep the weights of the best evaluation in the run's `best` folder.
        no_region_run: Folder of a finished run without the region loss, on the same data; its model is evaluated beside
            this one, as the row `no region loss`. None by default.
    """

    batch_size: int = 64
    ablations: bool = True
    num_cases: int = 24
    top_k: int = 5
    save_best: bool = False
    no_region_run: str | None = None


@dataclass(frozen=True)
class Settings:
    """All settings of a run.

    Attributes:
        run_dir: Folder of the run; by default `runs/sprc-<preset>`.
        model: The composition.
        data: The triplets.
        training: Optimisation, precision, DeepSpeed, checkpoints.
        evaluation: Held-out evaluation.
    """

    run_dir: str | None = None
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)

    def __post_init__(self) -> None:
        """Refuse what would fail only after data and model are read, or not be noticed at all."""
        model, data = self.model, self.data
        if model.use_region_loss and data.box_file is None and data.dataset != "OACIRR":
            raise ValueError("model.use_region_loss needs boxes: set data.box_file (--box-file), or leave it off")
        if model.use_region_loss and model.region_mode == "value" and data.token_cache is not None:
            raise ValueError(
                "model.region_mode is 'value', which needs the images themselves, and data.token_cache is "
                f"{data.token_cache!r}; expected another mode, or no cache"
            )
        if self.evaluation.save_best and self.training.zero_stage == 3:
            raise ValueError(
                "evaluation.save_best: under training.zero_stage 3 no rank holds whole weights to save; expected a "
                "stage of 2 or less"
            )
