"""The DeepSpeed configuration of a run: one JSON preset per ZeRO stage, or the user's own file."""

import json
from importlib import resources
from pathlib import Path

from region_training.settings import ConfigError, TrainingSettings


def deepspeed_config(settings: TrainingSettings) -> dict[str, object]:
    """Return the DeepSpeed configuration; values "auto" are filled in from the settings by the trainer.

    Args:
        settings: `deepspeed_config` names a file that replaces the preset of `zero_stage`.

    Raises:
        ConfigError: The file is missing, is no JSON object, or has another ZeRO stage than `zero_stage`.
    """
    if settings.deepspeed_config is None:
        preset = resources.files("region_training") / "deepspeed" / f"zero{settings.zero_stage}.json"
        return json.loads(preset.read_text(encoding="utf-8"))
    path = Path(settings.deepspeed_config)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"training.deepspeed_config: got {str(path)!r}, which does not exist") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"training.deepspeed_config: {str(path)!r} could not be read as JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("zero_optimization", {}), dict):
        raise ConfigError(f"training.deepspeed_config: {str(path)!r} is no DeepSpeed configuration, expected an object")
    stage = config.get("zero_optimization", {}).get("stage", 0)
    if stage != settings.zero_stage:
        raise ConfigError(
            f"training.zero_stage: got {settings.zero_stage}, but {str(path)!r} sets zero_optimization.stage to "
            f"{stage}; expected the same number"
        )
    if "optimizer" in config or "scheduler" in config:
        raise ConfigError(
            f"training.deepspeed_config: {str(path)!r} has its own 'optimizer' or 'scheduler'; expected neither, since "
            "parts have their own learning rates and these come from the training settings"
        )
    # accelerate would clip at 1.0 where a configuration says nothing, whatever the settings say.
    config.setdefault("gradient_clipping", "auto")
    return config
