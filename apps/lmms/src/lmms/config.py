"""Everything that can be set: one nested dataclass, filled from a preset, YAML files and the command line."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from region_training.settings import ConfigError, TrainingSettings
from video_autoregressive.config import AutoregressiveConfig, VideoTokenConfig

Backend = Literal["auto", "torchcodec", "pyav", "decord"]
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class ModelSettings:
    """The composition: a video language model of the Hugging Face library, and the reconstruction module.

    Attributes:
        pretrained: Folder or hub name of a video language model, or a run's model folder.
        config: Configuration with `model_type` (`llava_onevision`, `qwen2_5_vl`, `qwen3_vl`), for a model that starts
            from random weights.
        tokenizer: Folder or hub name; by default the pretrained model's, or one made from the training texts.
        vocabulary_size: Size of a tokenizer made from the training texts.
        image_size: Side of the frames in pixels, for models that take any size; by default the model's own.
        video_tokens: How features of frames become tokens; LLaVA-OneVision only.
        enable_autoregressive: Train with the reconstruction loss beside the language model's.
        autoregressive_config: The reconstruction module; the guide's keys and ours.
        main_loss_weight: Weight of the language modelling loss.
    """

    pretrained: str | None = None
    config: dict[str, Any] | None = None
    tokenizer: str | None = None
    vocabulary_size: int = 512
    image_size: int | None = None
    video_tokens: VideoTokenConfig = field(default_factory=VideoTokenConfig)
    enable_autoregressive: bool = False
    autoregressive_config: AutoregressiveConfig = field(default_factory=AutoregressiveConfig)
    main_loss_weight: float = 1.0

    def __post_init__(self) -> None:
        """Refuse two sources of the weights."""
        if self.pretrained is not None and self.config is not None:
            raise ConfigError(f"give model.pretrained ({self.pretrained!r}) or model.config, not both")
        if self.config is not None and "model_type" not in self.config:
            raise ConfigError(
                f"model.config needs model_type (for example llava_onevision), got the keys {sorted(self.config)}"
            )
        _ = self.token_layout

    @property
    def token_layout(self) -> VideoTokenConfig:
        """`video_tokens`, with slow and fast tokens where the module's `add_faster_video` asks for them, loss or not.

        LLaVA-OneVision's single newline goes with no faster stream; LLaVA-NeXT's, after every row, takes its place.

        Raises:
            ConfigError: Another layout was asked for that goes with no faster stream.
        """
        tokens, module = self.video_tokens, self.autoregressive_config
        if module.stream != "slowfast_pool" or tokens.faster_stride:
            return tokens
        newline = "grid" if tokens.newline == "one_token" else tokens.newline
        try:
            return replace(tokens, newline=newline, faster_stride=module.faster_token_stride)
        except ValueError as error:
            raise ConfigError(f"model.video_tokens.{error}") from error


@dataclass(frozen=True)
class SyntheticSettings:
    """Size of the synthetic world of moving shapes.

    Attributes:
        train_clips: Clips to train on.
        eval_clips: Held-out clips.
        image_size: Side of the clips in pixels.
        seed: The world is a pure function of these numbers.
    """

    train_clips: int = 1200
    eval_clips: int = 160
    image_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the sizes."""
        if self.train_clips < 1 or self.eval_clips < 1:
            raise ConfigError(
                f"synthetic: got train_clips {self.train_clips} and eval_clips {self.eval_clips}, expected 1 or more"
            )
        if self.image_size < 32 or self.image_size % 16:
            raise ConfigError(
                f"synthetic.image_size: got {self.image_size}, expected a multiple of 16 of at least 32 (codecs)"
            )


@dataclass(frozen=True)
class DataSettings:
    """Where the records are, and how frames are drawn from their videos.

    Attributes:
        root: Folder that file names in records are relative to.
        train_files: Record files (`.json`, `.jsonl`, `.parquet`; patterns allowed), relative to `root`.
        eval_files: Held-out record files.
        synthetic: Write a synthetic world to `root` if there is nothing yet.
        max_frames: Most frames of a clip.
        min_frames: A clip with fewer frames is a bad record.
        sampling: `uniform` takes `max_frames` evenly over the clip's time, first and last included; `fps` takes `fps`
            per second, at most `max_frames`; `stride` takes every `sample_rate`-th frame, evenly thinned to
            `max_frames` (the guide's rule).
        fps: Frames per second with `sampling: fps`.
        sample_rate: Distance in frames with `sampling: stride`.
        frame_folder_fps: Frames per second assumed for a folder of pictures.
        backend: Decoder; `auto` is torchcodec where its libraries are, else PyAV.
        decode_timeout_s: A video that takes longer to decode is a bad record, and its decoder is killed; 0 decodes in
            the loading process without a limit.
        time_instruction: Tell the model duration and times of the frames, in LLaVA-Video's manner.
        max_length: Longest sequence in tokens.
        overlong: What happens to a longer record: `raise` makes it a bad record, `fewer_frames` samples fewer frames.
        packing: Put several short samples into one sequence of up to `max_length` tokens; they do not see each other.
        manifest: Manifest written by `check-data`, relative to `root`; records whose videos it found bad are left out,
            and lengths are known without looking at the videos.
        on_error: Stop at a bad record, or skip and count it.
        max_bad_fraction: With skip, stop when more than this fraction of records is bad.
    """

    root: str = "data/video"
    train_files: list[str] = field(default_factory=lambda: ["train.json"])
    eval_files: list[str] = field(default_factory=lambda: ["val.json"])
    synthetic: SyntheticSettings | None = None
    max_frames: int = 32
    min_frames: int = 1
    sampling: Literal["uniform", "fps", "stride"] = "uniform"
    fps: float = 1.0
    sample_rate: int = 1
    frame_folder_fps: float = 1.0
    backend: Backend = "auto"
    decode_timeout_s: float = 0.0
    time_instruction: bool = False
    max_length: int = 8192
    overlong: Literal["raise", "fewer_frames"] = "raise"
    packing: bool = False
    manifest: str | None = None
    on_error: Literal["raise", "skip"] = "raise"
    max_bad_fraction: float = 0.01

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("max_frames", "min_frames", "sample_rate", "max_length"):
            self._expect(name, vars(self)[name] >= 1, "1 or more")
        for name in ("fps", "frame_folder_fps"):
            self._expect(name, vars(self)[name] > 0, "above 0")
        self._expect("decode_timeout_s", self.decode_timeout_s >= 0, "0 (no limit) or more seconds")
        self._expect("max_bad_fraction", 0 <= self.max_bad_fraction <= 1, "a fraction of the records")
        self._expect("min_frames", self.min_frames <= self.max_frames, f"at most max_frames ({self.max_frames})")

    def _expect(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ConfigError(f"data.{name}: got {vars(self)[name]!r}, expected {expected}")


@dataclass(frozen=True)
class EvaluationSettings:
    """How a model is evaluated.

    Attributes:
        batch_size: Records per batch.
        max_records: Evaluate on so many records only, spread over the data; 0 takes all.
        max_new_tokens: Longest generated answer.
        controls: Answer again with shuffled frames and with another record's video: how much rests on the order of
            time, and on the video at all.
        num_pictures: Cases drawn per kind of question.
    """

    batch_size: int = 32
    max_records: int = 0
    max_new_tokens: int = 16
    controls: bool = True
    num_pictures: int = 3


@dataclass(frozen=True)
class PreflightSettings:
    """What is looked at before training begins.

    Attributes:
        check: Estimate memory before training, and stop where it cannot fit.
        wait_s: Wait so many seconds at most until enough memory is free; 0 does not wait.
    """

    check: bool = True
    wait_s: float = 0.0


@dataclass(frozen=True)
class Settings:
    """All settings of a run.

    Attributes:
        run_dir: Folder of the run; by default `runs/lmms-<preset>`.
        model: The composition.
        data: The records.
        training: Optimisation, precision, DeepSpeed, checkpoints.
        evaluation: Held-out evaluation.
        preflight: Memory before training.
    """

    run_dir: str | None = None
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    preflight: PreflightSettings = field(default_factory=PreflightSettings)
