"""Settings of the verbs of `lmms` other than `train`, which `lmms.config` holds."""

from dataclasses import dataclass, field

from lmms.config import Backend, Device, SyntheticSettings


@dataclass(frozen=True)
class EvaluateSettings:
    """Settings of `evaluate`.

    Attributes:
        run: Run folder with a trained model.
        root: Folder of the data; the run's own by default.
        files: Record files; the run's held-out files by default.
        batch_size: Records per batch.
        max_records: Evaluate on so many records only; 0 takes all.
        controls: Answer again with shuffled frames and with another record's video.
        device: Where the model runs; `auto` is CUDA where there is one.
    """

    run: str
    root: str | None = None
    files: list[str] = field(default_factory=list)
    batch_size: int = 32
    max_records: int = 0
    controls: bool = True
    device: Device = "auto"


@dataclass(frozen=True)
class PredictSettings:
    """Settings of `predict`.

    Attributes:
        model: Run folder or model folder.
        video: Video file or folder of frames.
        question: What to ask.
        output: Picture of the frames that the model saw, with question and answer.
        max_frames: Most frames; the run's own number by default.
        max_new_tokens: Longest generated answer.
        backend: Decoder.
        device: Where the model runs; `auto` is CUDA where there is one.
    """

    model: str
    video: str
    question: str
    output: str = "prediction.png"
    max_frames: int | None = None
    max_new_tokens: int = 64
    backend: Backend = "auto"
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
class CheckDataSettings:
    """Settings of `check-data`.

    Attributes:
        root: Folder that file names in records are relative to.
        files: Record files, relative to `root`.
        manifest: Manifest to write, as JSON lines: frames, rate, duration, codec, rotation of every video, and what is
            wrong with the bad ones.
        frames: Frames decoded of every video, spread over it; 0 decodes all of them, piece by piece.
        num_workers: Processes that decode; one that hangs is killed.
        timeout_s: Longest time for a piece of up to 256 frames.
        backend: Decoder.
    """

    root: str
    files: list[str] = field(default_factory=lambda: ["train.json", "val.json"])
    manifest: str = "manifest.jsonl"
    frames: int = 0
    num_workers: int = 2
    timeout_s: float = 30.0
    backend: Backend = "auto"


@dataclass(frozen=True)
class ConvertSettings:
    """Settings of `convert`.

    Attributes:
        model: Run folder or model folder.
        output: Folder to write: the plain video language model, as the Hugging Face library opens it.
    """

    model: str
    output: str


@dataclass(frozen=True)
class StopSettings:
    """Settings of `stop`.

    Attributes:
        run: Run folder of a training that is under way on this machine.
        wait_s: Longest time to wait for its last checkpoint.
    """

    run: str
    wait_s: float = 120.0
