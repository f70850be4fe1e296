"""Settings of the verbs of `spatialrgpt` other than `train`, which `spatialrgpt.config` holds."""

from dataclasses import dataclass, field
from typing import Literal

from spatialrgpt.config import SyntheticSettings


@dataclass(frozen=True)
class EvaluateSettings:
    """Settings of `evaluate`.

    Attributes:
        run: Run folder with a trained model.
        split: Split to evaluate; the run's own by default.
        root: Folder of the data; the run's own by default.
        batch_size: Questions per batch.
        max_records: Evaluate on so many records only; 0 takes all.
        generate_records: For how many records text is generated; -1 takes all.
        device: Where the model runs; `auto` is CUDA where there is one.
    """

    run: str
    split: str | None = None
    root: str | None = None
    batch_size: int = 64
    max_records: int = 0
    generate_records: int = -1
    device: Literal["auto", "cpu", "cuda"] = "auto"


@dataclass(frozen=True)
class PredictSettings:
    """Settings of `predict`.

    Attributes:
        model: Run folder or model folder.
        image: Image file.
        question: Question with one `<mask>` per region, such as "How far is <mask> from <mask>?".
        regions: JSON list of regions, or a file that holds one: [{"box": [x0, y0, x1, y1]}, ...], normalised to [0, 1];
            also `rle`, `polygon`, `point`, `scribble`, and `"units": "pixels"`.
        depth: Depth map (8- or 16-bit PNG).
        output: Picture to write.
        max_new_tokens: Longest generated answer.
        device: Where the model runs; `auto` is CUDA where there is one.
    """

    model: str
    image: str
    question: str
    regions: str = "[]"
    depth: str | None = None
    output: str = "prediction.png"
    max_new_tokens: int = 64
    device: Literal["auto", "cpu", "cuda"] = "auto"


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
class CheckDataSettings:
    """Settings of `check-data`.

    Attributes:
        root: Folder with `{split}.json` and `{split}/images`.
        split: Split to read from end to end.
        report: File for the findings as JSON lines; none by default.
    """

    root: str
    split: str = "train"
    report: str | None = None
