"""Settings of the verbs of `psalm` other than `train`, which `psalm.config` holds."""

from dataclasses import dataclass, field
from typing import Literal

from deformable_projector.config import DeformableProjectorConfig

from psalm.config import DataSettings, Device, SyntheticSettings
from psalm.modes import Mode


@dataclass(frozen=True)
class EvaluateSettings:
    """Settings of `evaluate`.

    Attributes:
        run: Run folder with a trained model.
        split: Split to evaluate; the run's own by default.
        modes: What to evaluate, whatever `seg_task` the run was trained with; by default all that the run's data allow.
        batch_size: Samples per batch.
        max_samples: Samples per data set at most, taken at equal steps; 0 takes all.
        baselines: Also score the untrained model and the trivial answers.
        prompt_agreement: Of a region's masks, prefer those that lie where it was shown; by default as the run does.
        device: Where the model runs; `auto` is CUDA where there is one.
    """

    run: str
    split: str | None = None
    modes: list[Mode] | None = None
    batch_size: int = 8
    max_samples: int = 0
    baselines: bool = True
    prompt_agreement: bool | None = None
    device: Device = "auto"


@dataclass(frozen=True)
class PredictSettings:
    """Settings of `predict`.

    Attributes:
        model: Run folder or model folder.
        image: Image file.
        classes: Names of the candidate classes, with commas between them.
        things: Which of the classes are countable things, with commas between them; by default all.
        mode: What to make of the classes.
        sentence: What to segment, in words.
        box: Regions x0,y0,x1,y1; several of any form are divided by a semicolon.
        point: Regions x,y.
        scribble: Regions x,y,x,y,...: corners of a line.
        mask: Regions as image files of the image's size, white inside.
        units: What coordinates are in: shares of the image from the top left, or pixels.
        reference: Image file that the regions lie on; the same is then segmented in `image`.
        output: Picture to write.
        json: COCO file to write; by default the picture's name with `.json`.
        score_threshold: Panoptic segments below this score are left out.
        overlap_threshold: So are those of which less than this share of pixels is left.
        target_threshold: Masks for a sentence below this score are no target.
        match_threshold: Masks on the other image above this score are united.
        prompt_agreement: For a region, prefer masks that lie where it was shown.
        device: Where the model runs; `auto` is CUDA where there is one.
    """

    model: str
    image: str
    classes: str | None = None
    things: str | None = None
    mode: Literal["panoptic", "semantic", "instance"] = "panoptic"
    sentence: str | None = None
    box: str | None = None
    point: str | None = None
    scribble: str | None = None
    mask: str | None = None
    units: Literal["normalised", "pixels"] = "normalised"
    reference: str | None = None
    output: str = "prediction.png"
    json: str | None = None
    score_threshold: float = 0.8
    overlap_threshold: float = 0.8
    target_threshold: float = 0.5
    match_threshold: float = 0.6
    prompt_agreement: bool = True
    device: Device = "auto"


@dataclass(frozen=True)
class ReportSettings:
    """Settings of `report`.

    Attributes:
        run: Run folder whose `report.html` is written again from its files.
    """

    run: str


@dataclass(frozen=True)
class MakeDataSettings:
    """Settings of `make-data`.

    Attributes:
        root: Folder to write to; a split of the same world that is already there is kept, another world is refused.
        world: Size of the synthetic world.
    """

    root: str
    world: SyntheticSettings = field(default_factory=SyntheticSettings)


@dataclass(frozen=True)
class ConvertSettings:
    """Settings of `convert`.

    Attributes:
        source: A detectron2 Mask2Former `.pkl`, a published PSALM folder, or a Phi folder with fused attention.
        output: Folder to write.
        swin_type: Published size that the backbone of a `.pkl` has to have; by default any.
        image_size: Side of the square input of a published PSALM in pixels.
        system_text: First words of every sequence, as a published PSALM was trained with; by default this project's.
    """

    source: str
    output: str
    swin_type: Literal["base", "large"] | None = None
    image_size: int = 1024
    system_text: str | None = None


@dataclass(frozen=True)
class AdaptProjectorSettings:
    """Settings of `adapt-projector`.

    Attributes:
        source: A baseline's `mm_projector.bin`, or a whole model: PSALM's, or a folder or file of ours.
        output: The file of safetensors to write, for `model.projector_weights` (`--pretrain_mm_mlp_adapter`).
        swin_type: Published size of the backbone.
        conv2_repeats: How often the baseline ran its second convolution; by default what the names of the weights or
            the `config.json` beside them say, else 2, as published.
        projector: Size of the deformable part.
    """

    source: str
    output: str
    swin_type: Literal["base", "large"] = "base"
    conv2_repeats: Literal[1, 2] | None = None
    projector: DeformableProjectorConfig = field(default_factory=DeformableProjectorConfig)


@dataclass(frozen=True)
class CheckDataSettings:
    """Settings of `check-data`.

    Attributes:
        data: The data sets to read from end to end.
        split: Split to read.
        report: File for the findings as JSON lines; none by default.
    """

    data: DataSettings = field(default_factory=DataSettings)
    split: str = "train"
    report: str | None = None
