"""Settings of the verbs of `sprc` other than `train`, which `sprc.config` holds."""

from dataclasses import dataclass, field
from typing import Literal

from sprc.config import DatasetName, Device, SyntheticSettings


@dataclass(frozen=True)
class EvaluateSettings:
    """Settings of `evaluate`.

    Attributes:
        run: Run folder with a trained model.
        split: Split to evaluate; the run's own by default.
        root: Folder of the data; the run's own by default.
        batch_size: Images or queries per batch.
        ablations: Also score the text alone, the image alone and captions of other queries.
        no_region_run: Folder of a finished run without the region loss, on the same data, whose model is evaluated
            beside this one; by default the one that the run's configuration names, if any.
        device: Where the model runs; `auto` is CUDA where there is one.
    """

    run: str
    split: str | None = None
    root: str | None = None
    batch_size: int = 64
    ablations: bool = True
    no_region_run: str | None = None
    device: Device = "auto"


@dataclass(frozen=True)
class PredictSettings:
    """Settings of `predict`.

    Attributes:
        model: Run folder or model folder.
        image: Reference image file.
        text: What shall be different.
        gallery: Folder of images to search.
        top_k: Images to return.
        index: Folder that keeps the gallery's features between calls; none by default.
        output: Contact sheet to write.
        batch_size: Images per batch.
        device: Where the model runs; `auto` is CUDA where there is one.
    """

    model: str
    image: str
    text: str
    gallery: str
    top_k: int = 10
    index: str | None = None
    output: str = "retrieved.html"
    batch_size: int = 64
    device: Device = "auto"


@dataclass(frozen=True)
class SubmitSettings:
    """Settings of `submit`.

    Attributes:
        run: Run folder with a trained model.
        output: Folder for the two files of CIRR's test server.
        split: Split without targets.
        root: Folder of the data; the run's own by default.
        batch_size: Images or queries per batch.
        device: Where the model runs; `auto` is CUDA where there is one.
    """

    run: str
    output: str = "submission"
    split: str = "test1"
    root: str | None = None
    batch_size: int = 64
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
        dataset: Layout to write.
        world: Size of the synthetic world.
    """

    root: str
    dataset: Literal["CIRR", "FashionIQ"] = "CIRR"
    world: SyntheticSettings = field(default_factory=SyntheticSettings)


@dataclass(frozen=True)
class CheckDataSettings:
    """Settings of `check-data`.

    How images become square and which pairs of boxes are used is taken from `run`, `preset` or `config`, or else from
    the preset `tiny`.

    Attributes:
        root: Folder of the data set; by default that of the run, the preset or the configuration.
        run: Run folder, to see what its training saw.
        preset: Preset of `train`, to see what it would see.
        config: YAML file of `train`, likewise; a `preset:` in it counts.
        dataset: Which data set it is; by default as in the run, the preset or the configuration.
        split: Split to read from end to end; by default the one that is trained on.
        box_file: JSON file of boxes to check with it; by default that of the run, the preset or the configuration.
        box_format: Coordinates of the box file, likewise.
        report: File for the findings as JSON lines; none by default.
    """

    root: str | None = None
    run: str | None = None
    preset: str | None = None
    config: str | None = None
    dataset: DatasetName | None = None
    split: str | None = None
    box_file: str | None = None
    box_format: Literal["xyxy_norm", "xyxy_pixel", "xywh_pixel", "cxcywh_norm"] | None = None
    report: str | None = None

    def __post_init__(self) -> None:
        """One source of settings at most; without any, the data set must be named."""
        sources = {name: vars(self)[name] for name in ("run", "preset", "config") if vars(self)[name] is not None}
        if len(sources) > 1:
            raise ValueError(f"give one of run, preset and config, got {sources}")
        if not sources and self.root is None:
            raise ValueError("expected the folder of a data set, or --run, --preset or --config, got none of them")


@dataclass(frozen=True)
class ImportBoxesSettings:
    """Settings of `import-boxes`.

    Attributes:
        source: COCO JSON (annotations or detection results), or a folder of YOLO text files.
        output: Box file to write.
        images: With COCO detection results, the annotation file that names the images.
        min_score: Detections below this confidence are left out.
        min_area: So are boxes that cover a smaller share of their image.
        max_boxes: Largest number of boxes per image; the largest ones are taken.
    """

    source: str
    output: str
    images: str | None = None
    min_score: float = 0.3
    min_area: float = 0.01
    max_boxes: int = 5


@dataclass(frozen=True)
class CacheSettings:
    """Settings of `cache`.

    Attributes:
        run: Run folder whose frozen tower is used.
        folder: Where the tokens go.
        split: Split whose images are read.
        batch_size: Images per batch.
        device: Where the tower runs; `auto` is CUDA where there is one.
    """

    run: str
    folder: str
    split: str = "train"
    batch_size: int = 64
    device: Device = "auto"


@dataclass(frozen=True)
class ConvertSettings:
    """Settings of `convert`.

    Attributes:
        source: An SPRC `.pt`, a LAVIS `.pth`, a Hugging Face BLIP-2 folder, or an SPRC folder.
        output: Folder to write, or the `.pt` file.
        to: Layout to write.
    """

    source: str
    output: str
    to: Literal["huggingface", "sprc"] = "huggingface"
