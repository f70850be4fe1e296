"""Everything that can be set: one nested dataclass, filled from a preset, YAML files and the command line."""

from dataclasses import dataclass, field
from typing import Any, Literal

from region_core.config import RegionEnhancerConfig
from region_heads.config import RegionHeadsConfig
from region_training.settings import TrainingSettings


@dataclass(frozen=True)
class BackboneSettings:
    """A vision tower or a language model, pretrained or from a configuration.

    Attributes:
        pretrained: Folder or hub name of a Hugging Face model whose weights are loaded.
        config: Configuration with `model_type`, for a model that starts from random weights.
    """

    pretrained: str | None = None
    config: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Refuse two sources for the same thing."""
        if self.pretrained is not None and self.config is not None:
            raise ValueError(f"give `pretrained` ({self.pretrained!r}) or `config`, not both")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError(f"`config` needs `model_type` (for example 'llama'), got the keys {sorted(self.config)}")


@dataclass(frozen=True)
class ModelSettings:
    """The composition; names that begin with enable_ and tune_ are the guides'.

    Attributes:
        vision: Vision tower.
        text: Causal language model.
        checkpoint: A SpatialRGPT folder to start from, instead of `vision` and `text`.
        tokenizer: Folder or hub name; by default the language model's, or one made from the training texts.
        vocabulary_size: Size of a tokenizer made from the training texts.
        vision_feature_layer: Which hidden state of the tower is used.
        image_mean: Mean per channel of images in [0, 1]; by default the pretrained tower's own, else 0.5.
        image_std: Standard deviation per channel; by default the pretrained tower's own, else 0.5.
        refinement_stages: Number of 2x upsampling steps before regions are pooled.
        refine_depth: Give depth maps a refinement of their own.
        region_geometry: Tell the model each region's place, size and depth.
        projector_downsample: Side of the square of image tokens that becomes one language token.
        enable_region: Use region embeddings.
        enable_depth: Use depth maps.
        enable_region_enhancer: Let regions exchange information before the language model.
        region_enhancer_cfg: The enhancer's sizes.
        enable_region_heads: Answer with typed heads beside the generated text.
        tune_region_heads: Train the heads; off, they are frozen as loaded.
        region_heads_cfg: Which heads, their dropout, losses and weights.
        lm_loss_weight: Weight of the language modelling loss.
    """

    vision: BackboneSettings = field(default_factory=BackboneSettings)
    text: BackboneSettings = field(default_factory=BackboneSettings)
    checkpoint: str | None = None
    tokenizer: str | None = None
    vocabulary_size: int = 512
    vision_feature_layer: int = -2
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    refinement_stages: int = 2
    refine_depth: bool = False
    region_geometry: bool = True
    projector_downsample: int = 2
    enable_region: bool = True
    enable_depth: bool = True
    enable_region_enhancer: bool = True
    region_enhancer_cfg: RegionEnhancerConfig = field(default_factory=RegionEnhancerConfig)
    enable_region_heads: bool = False
    tune_region_heads: bool = False
    region_heads_cfg: RegionHeadsConfig = field(default_factory=RegionHeadsConfig)
    lm_loss_weight: float = 1.0


@dataclass(frozen=True)
class SyntheticSettings:
    """Size of the synthetic warehouse world.

    Attributes:
        train_scenes: Scenes to train on.
        eval_scenes: Held-out scenes.
        questions: Most questions of each kind about a scene.
        seed: The world is a pure function of these numbers.
    """

    train_scenes: int = 1500
    eval_scenes: int = 150
    questions: int = 4
    seed: int = 0


@dataclass(frozen=True)
class DataSettings:
    """Where the records are, and how they are drawn.

    Attributes:
        root: Folder with `train.json`, `val.json` and `{split}/images`, `{split}/depths`.
        train_split: Name of the split to train on.
        eval_split: Name of the split to evaluate on.
        synthetic: Write a small synthetic world to `root` if there is nothing yet.
        balance_tasks: 0 keeps the natural mix of tasks, 1 draws all tasks equally often.
        max_length: Longest sequence in tokens; a longer record is a bad record.
        on_error: Stop at a bad record, or skip and count it.
        max_bad_fraction: With skip, stop when more than this fraction of records is bad.
    """

    root: str = "data/warehouse"
    train_split: str = "train"
    eval_split: str = "val"
    synthetic: SyntheticSettings | None = None
    balance_tasks: float = 1.0
    max_length: int = 4096
    on_error: Literal["raise", "skip"] = "raise"
    max_bad_fraction: float = 0.01


@dataclass(frozen=True)
class EvaluationSettings:
    """How a model is evaluated.

    Attributes:
        batch_size: Questions per batch.
        max_records: Evaluate on the first records only; 0 takes all.
        generate_records: For how many records the text answer is generated and parsed; 0 skips generation, -1 takes
            all.
        max_new_tokens: Longest generated answer.
        num_pictures: Worst and sample cases drawn per task.
    """

    batch_size: int = 64
    max_records: int = 0
    generate_records: int = -1
    max_new_tokens: int = 48
    num_pictures: int = 4


@dataclass(frozen=True)
class Settings:
    """All settings of a run.

    Attributes:
        run_dir: Folder of the run; by default `runs/spatialrgpt-<preset>`.
        model: The composition.
        data: The records.
        training: Optimisation, precision, DeepSpeed, checkpoints.
        evaluation: Held-out evaluation.
    """

    run_dir: str | None = None
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
