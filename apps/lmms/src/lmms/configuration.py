"""`VideoLMMConfig`: a video language model of the Hugging Face library, and the reconstruction module beside it.

A saved folder is the library's own: its `config.json` is that of the video language model, which plain transformers
opens. What is ours lies in the folder `autoregressive/` below it.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, no_type_check

from transformers import AutoConfig, PreTrainedConfig
from video_autoregressive.config import AutoregressiveConfig, VideoTokenConfig

OWN_FOLDER = "autoregressive"
"""Folder of what plain transformers does not know, below a model's folder."""
OWN_KEYS = ("video_tokens", "autoregressive_config", "teacher", "main_loss_weight", "image_mean", "image_std")


# transformers gives the constructor more keywords than a shape checker's wrapper lets through.
@no_type_check
class VideoLMMConfig(PreTrainedConfig):
    """Configuration of `VideoLMM`.

    Args:
        lmm_config: Configuration of the video language model, as a dictionary with `model_type`.
        video_tokens: Keys of `VideoTokenConfig`; missing keys take its defaults, which are LLaVA-OneVision's.
        autoregressive_config: Keys of `AutoregressiveConfig`; None has no reconstruction module.
        teacher: What the targets came from: `kind`, `source` (what a snapshot was taken of; None where training
            began with random weights) and `fingerprint`.
        main_loss_weight: Weight of the language modelling loss.
        image_mean: Mean per channel of pixels in [0, 1]; applied on the device.
        image_std: Their standard deviation.
    """

    model_type = "regionwise_video_lmm"
    sub_configs = {"lmm_config": AutoConfig}  # noqa: RUF012 - transformers' own form

    lmm_config: dict[str, Any] | PreTrainedConfig | None = None
    video_tokens: dict[str, Any] | None = None
    autoregressive_config: dict[str, Any] | None = None
    teacher: dict[str, Any] | None = None
    main_loss_weight: float = 1.0
    image_mean: list[float] | None = None
    image_std: list[float] | None = None

    def __post_init__(self, **kwargs: object) -> None:
        """Build the sub-configuration and complete the dictionaries, refusing unknown keys."""
        if not isinstance(self.lmm_config, PreTrainedConfig):
            values = dict(self.lmm_config or {})
            self.lmm_config = AutoConfig.for_model(values.pop("model_type", "llava_onevision"), **values)
        self.video_tokens = asdict(self.tokens)
        if self.autoregressive_config is not None:
            self.autoregressive_config = asdict(AutoregressiveConfig.from_mapping(self.autoregressive_config))
        self.image_mean = list(self.image_mean or [0.5, 0.5, 0.5])
        self.image_std = list(self.image_std or [0.5, 0.5, 0.5])
        super().__post_init__(**kwargs)

    @property
    def lmm(self) -> PreTrainedConfig:
        """`lmm_config`, which is an object from the constructor on."""
        assert isinstance(self.lmm_config, PreTrainedConfig)
        return self.lmm_config

    @property
    def tokens(self) -> VideoTokenConfig:
        """`video_tokens`, checked."""
        return VideoTokenConfig(**(self.video_tokens or {}))

    @property
    def autoregressive(self) -> AutoregressiveConfig | None:
        """`autoregressive_config`, checked; None without the module."""
        if self.autoregressive_config is None:
            return None
        return AutoregressiveConfig.from_mapping(self.autoregressive_config)

    @property
    def hidden_size(self) -> int:
        """Width of the language model; DeepSpeed's automatic bucket sizes read it."""
        return self.lmm.get_text_config().hidden_size

    def save_own(self, folder: Path) -> None:
        """Write what plain transformers does not know to `folder/autoregressive/config.json`."""
        (folder / OWN_FOLDER).mkdir(parents=True, exist_ok=True)
        values = {key: vars(self)[key] for key in OWN_KEYS}
        (folder / OWN_FOLDER / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def read_own(folder: Path) -> dict[str, Any]:
    """The keys that `save_own` wrote; none for a folder that is not of this application.

    Raises:
        ValueError: The file has other keys.
    """
    path = folder / OWN_FOLDER / "config.json"
    if not path.is_file():
        return {}
    values = json.loads(path.read_text(encoding="utf-8"))
    unknown = sorted(set(values) - set(OWN_KEYS))
    if unknown:
        raise ValueError(f"{path}: unknown keys {', '.join(unknown)}; known are {', '.join(OWN_KEYS)}")
    return values
