"""`VideoLMM`: a video language model, trained to predict the frames that come beside the words of the answer.

The video language model is the Hugging Face library's; a saved folder is one of its own, and what is ours lies in
`autoregressive/` below it. The reconstruction module reads the language model's hidden states at the tokens of the
frames and predicts what a frozen vision encoder says about the next frame.

Every module runs in every forward, on a black picture or on no row where a batch has nothing for it, and is reached by
every backward: otherwise ranks with different batches wait for each other for ever under ZeRO-3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, Num
from region_core.losses import LossTerms, drop_dummy, touch, with_dummy_row
from region_training.strict_loading import load_strictly
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel
from transformers.utils import ModelOutput
from video_autoregressive.features import FrameFeatures
from video_autoregressive.layout import FrameBatch
from video_autoregressive.reconstruction import AutoregressiveOutput, AutoregressiveReconstructionModule
from video_autoregressive.teacher import SharedTeacher, Teacher

from lmms.backbone import Backbone, Reading
from lmms.configuration import OWN_FOLDER, VideoLMMConfig, read_own
from lmms.families import family_class
from lmms.onevision import OnevisionBackbone
from lmms.qwen_vl import Qwen3Backbone, Qwen25Backbone

IGNORED_LABEL = -100
OWN_WEIGHTS = "model.safetensors"
FASTER_TOKEN = "lmm.model.faster_token"
"""A weight inside the video language model that plain transformers does not know."""

BACKBONES: Mapping[str, type[Backbone]] = {
    backbone.model_type: backbone for backbone in (OnevisionBackbone, Qwen25Backbone, Qwen3Backbone)
}


@dataclass
class VideoLMMOutput(ModelOutput):
    """What `VideoLMM` returns.

    Attributes:
        loss: Weighted sum of the loss terms; None without labels and frames.
        losses: The terms by name, as sums and counts: `main`, and those of the reconstruction module.
        logits: Next-token logits `[batch, tokens, vocabulary]`; None with labels, which need only some rows.
        hidden: Last hidden states `[batch, tokens, dim]`.
        autoregressive: What the reconstruction module says; None if it is off.
    """

    loss: Tensor | None = None
    losses: LossTerms | None = None
    logits: Tensor | None = None
    hidden: Tensor | None = None
    autoregressive: AutoregressiveOutput | None = None


class VideoLMM(PreTrainedModel):
    """A video language model with a reconstruction module.

    Args:
        config: The composition.
        lmm: The video language model with its weights; by default a new one.
        teacher: Gives the targets; by default the model's own tower, which then has to be frozen.

    Raises:
        ValueError: The family is not known, or the module does not fit the tower.
    """

    config: VideoLMMConfig
    config_class = VideoLMMConfig
    base_model_prefix = "video_lmm"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(
        self, config: VideoLMMConfig, lmm: PreTrainedModel | None = None, teacher: Teacher | None = None
    ) -> None:
        super().__init__(config)
        self.backbone = backbone_of(config)
        if lmm is None:
            # Published configurations may ask for float16; this model has one type, float32 if it is new.
            lmm = AutoModelForImageTextToText.from_config(config.lmm, dtype=torch.get_default_dtype())
        assert isinstance(lmm, PreTrainedModel)
        self.backbone.adopt(lmm)
        self.lmm = lmm
        settings, module = config.autoregressive, None
        if settings is not None:
            if teacher is None:
                # A folder may be of a model with another teacher, which is not in it.
                own = (config.teacher or {}).get("kind", "shared") == "shared" and settings.teacher_layer is None
                teacher = SharedTeacher(self.backbone.feature_width(config.lmm) if own else settings.embedding_dim)
            else:
                config.teacher = {**(config.teacher or {}), "kind": teacher.kind}
            module = AutoregressiveReconstructionModule(config.hidden_size, settings, teacher)
        self.autoregressive_module = module
        self.post_init()

    def init_weights(self) -> None:
        """Leave the weights as they are: the parts come initialised, or with the weights of a checkpoint."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        *,
        teacher: Teacher | None = None,
        dtype: torch.dtype | None = None,
    ) -> "VideoLMM":
        """Open a folder that `save_pretrained` wrote; a missing or unexpected weight is an error.

        Args:
            pretrained_model_name_or_path: The folder.
            teacher: Gives targets where the model's own tower was trained, whose first weights are not in the folder;
                without it such a model computes no reconstruction loss.
            dtype: Type of the weights; by default torch's default.

        Raises:
            ValueError: The weights do not match the configuration; the message lists them.
        """
        folder = Path(pretrained_model_name_or_path)
        own = read_own(folder)
        config = VideoLMMConfig(lmm_config=AutoConfig.from_pretrained(folder), **own)
        model = cls(config, open_plain(str(folder), dtype), teacher)
        model.to(dtype or torch.get_default_dtype())
        fill_own(model, folder)
        return model.eval()

    def save_pretrained(
        self,
        save_directory: str | PathLike[str],
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Save the video language model as the library's own, and what is ours in `autoregressive/`.

        Args:
            save_directory: Folder to write.
            is_main_process: Whether this rank writes.
            state_dict: All weights, gathered, where the model itself holds only a part of them.
            args: Further arguments of the library's function.
            kwargs: The same.
        """
        if not is_main_process:
            return
        folder = Path(save_directory)
        weights = dict(self.state_dict() if state_dict is None else state_dict)
        self.save_plain(folder, weights, *args, **kwargs)
        self.config.save_own(folder)
        own = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items() if _is_own(name)}
        if own:
            save_file(own, folder / OWN_FOLDER / OWN_WEIGHTS, metadata={"format": "pt"})

    def save_plain(
        self, folder: Path, state_dict: Mapping[str, Tensor] | None = None, *args: Any, **kwargs: Any
    ) -> None:
        """Save the video language model alone, as the library's own; arguments as for `save_pretrained`."""
        weights = self.state_dict() if state_dict is None else state_dict
        plain = {name.removeprefix("lmm."): tensor for name, tensor in weights.items() if not _is_own(name)}
        self.lmm.save_pretrained(folder, True, plain, *args, **kwargs)
        # Under its own name, not that of our subclass, other programs know the model.
        self.lmm.config.architectures = [_plain_class(self.lmm).__name__]
        self.lmm.config.save_pretrained(folder)

    def get_input_embeddings(self) -> nn.Module:
        """Token embeddings of the language model."""
        return self.lmm.get_input_embeddings()

    @property
    def computes_autoregressive_loss(self) -> bool:
        """Whether there is a reconstruction module and a teacher for it."""
        if self.autoregressive_module is None:
            return False
        return self.autoregressive_module.teacher.kind == (self.config.teacher or {}).get("kind", "shared")

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Num[Tensor, "batch tokens"] | None = None,
        labels: Int[Tensor, "batch tokens"] | None = None,
        frames: FrameBatch | None = None,
        position_ids: Int[Tensor, "batch tokens"] | None = None,
        visuals: Mapping[str, Tensor] | None = None,
        loss_counts: Mapping[str, float | int | Tensor] | None = None,
        autoregressive_weight: float | int | None = None,
    ) -> VideoLMMOutput:
        """Run the model; which losses are computed follows from what is given.

        Args:
            input_ids: Token ids with a placeholder per visual token.
            attention_mask: 1 for tokens, 0 for padding.
            labels: Next-token targets; -100 is ignored.
            frames: The frames of the videos at their tokens; with labels, None means that there are none.
            position_ids: Positions in packed rows, which have no attention mask.
            visuals: What the videos and images show, by the names of the family.
            loss_counts: Items of each loss term per micro-batch, averaged over the whole optimizer step.
            autoregressive_weight: Weight of the reconstruction loss in this step; by default the module's own.

        Raises:
            ValueError: Placeholders, visuals and frames do not match.
        """
        visuals = self._checked(visuals)
        reading = self.backbone.read(self.lmm, input_ids, attention_mask, position_ids, visuals)
        losses = LossTerms()
        logits = None
        if labels is None:
            logits = self._word_head(reading.hidden)
        else:
            total, count = self._main_loss(reading.hidden, labels)
            losses.add("main", total, count, weight=self.config.main_loss_weight)
        autoregressive = None
        if self.computes_autoregressive_loss and (frames is not None or labels is not None):
            if frames is None:
                frames = FrameBatch.collate([], input_ids.shape[1])
            autoregressive = self._reconstruct(reading, frames, visuals, autoregressive_weight)
            losses.merge(autoregressive.losses)
        loss = losses.weighted_total(loss_counts) + reading.unused if losses else None
        return VideoLMMOutput(
            loss=loss,
            losses=losses or None,
            logits=logits,
            hidden=reading.hidden,
            autoregressive=autoregressive,
        )

    @torch.no_grad()
    def generate(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Num[Tensor, "batch tokens"],
        *,
        visuals: Mapping[str, Tensor] | None = None,
        **generation: Any,
    ) -> Int[Tensor, "batch new_tokens"]:
        """Generate answers for a batch of prompts, padded on the left.

        Args:
            input_ids: Prompts with placeholders.
            attention_mask: 1 for tokens, 0 for padding.
            visuals: See `forward`.
            generation: What `transformers`' `generate` takes: `max_new_tokens`, `do_sample`, ...

        Returns:
            The new tokens alone.
        """
        tokens = self.backbone.generate(self.lmm, input_ids, attention_mask, self._checked(visuals), **generation)
        return tokens[:, input_ids.shape[1] :]

    @torch.no_grad()
    def encode_frames(self, visuals: Mapping[str, Tensor]) -> FrameFeatures:
        """The teacher's features of a batch's frames, which the reconstruction module predicts.

        Raises:
            ValueError: There is no teacher.
        """
        if not self.computes_autoregressive_loss:
            raise ValueError("there is no reconstruction module, or its teacher's weights are not known")
        assert self.autoregressive_module is not None
        teacher = self.autoregressive_module.teacher
        groups = self.backbone.frames_of(self._checked(visuals), self.dtype)
        if teacher.kind == "shared":
            tower = self.backbone.tower(self.lmm)
            parts = [self.backbone.see(tower, frames) for frames in groups]
        else:
            parts = [teacher.encode(frames) for frames in groups]
        empty = FrameFeatures(torch.empty(0, teacher.dim, device=self.device), ())
        return FrameFeatures.concatenated(parts) if parts else empty

    def _reconstruct(
        self, reading: Reading, frames: FrameBatch, visuals: Mapping[str, Tensor], weight: float | int | None
    ) -> AutoregressiveOutput:
        """Predict the frames that come."""
        assert self.autoregressive_module is not None
        shared = self.autoregressive_module.teacher.kind == "shared"
        if shared and self.training and any(p.requires_grad for p in self._tower_parameters()):
            raise ValueError(
                "the teacher is the model's own tower, which is trained: freeze it (training.frozen_parts: "
                "[vision_tower]) or choose autoregressive_config.teacher 'snapshot'"
            )
        targets = reading.features if shared else self.encode_frames(visuals)
        return self.autoregressive_module(reading.layer, frames, targets, weight=weight)

    def _tower_parameters(self) -> list[nn.Parameter]:
        prefixes = self.backbone.parts["vision_tower"]
        return [parameter for name, parameter in self.lmm.named_parameters() if name.startswith(prefixes)]

    def _main_loss(
        self, hidden: Float[Tensor, "batch tokens dim"], labels: Int[Tensor, "batch tokens"]
    ) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        """Sum and count of the next-token cross-entropy; only rows with a target reach the word head."""
        targets = labels[:, 1:]
        used = targets != IGNORED_LABEL
        rows, num_dummy = with_dummy_row(hidden[:, :-1][used])
        logits = drop_dummy(self._word_head(rows), num_dummy)
        total = F.cross_entropy(logits.float(), targets[used], reduction="sum")
        return total + touch(logits), used.sum()

    def _word_head(self, hidden: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows vocabulary"]:
        return self.lmm.get_output_embeddings()(hidden)

    def _checked(self, visuals: Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
        unknown = sorted(set(visuals or {}) - set(self.backbone.visual_names))
        if unknown:
            known = ", ".join(self.backbone.visual_names)
            raise ValueError(f"visuals: got {', '.join(unknown)}, {self.backbone.model_type} knows {known}")
        return visuals or {}


def backbone_of(config: VideoLMMConfig) -> Backbone:
    """The backbone of a configuration.

    Raises:
        ValueError: Its family is not known.
    """
    family_class(config.lmm.model_type)
    return BACKBONES[config.lmm.model_type](config)


def open_plain(source: str, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Open a video language model of the library; a missing or unexpected weight is an error.

    Only safetensors are read: what else a folder may hold are pickles.

    Args:
        source: Folder or hub name.
        dtype: Type of the weights; by default torch's default, whatever the configuration says.

    Raises:
        ValueError: The weights do not match the configuration; the message lists them.
    """
    lmm, _ = load_strictly(
        AutoModelForImageTextToText.from_pretrained,
        source,
        dtype=dtype or torch.get_default_dtype(),
        use_safetensors=True,
    )
    return lmm


def fill_own(model: VideoLMM, folder: Path) -> None:
    """Load the weights that plain transformers does not know.

    Raises:
        ValueError: They are not those of the model.
    """
    expected = {name: tensor for name, tensor in model.state_dict().items() if _is_own(name)}
    path = folder / OWN_FOLDER / OWN_WEIGHTS
    found = load_file(path) if path.is_file() else {}
    missing, unexpected = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    misshapen = [name for name in found if name in expected and found[name].shape != expected[name].shape]
    if missing or unexpected or misshapen:
        raise ValueError(
            f"{path}: weights and configuration do not match; missing: {missing[:6]}, unexpected: {unexpected[:6]}, of "
            f"another shape: {misshapen[:6]}"
        )
    model.load_state_dict(found, strict=False)


def fill_faster_token(model: VideoLMM, folder: Path) -> None:
    """Load the learned faster token alone, where model and folder have one: it stands in every video's tokens."""
    path = folder / OWN_FOLDER / OWN_WEIGHTS
    found = load_file(path) if path.is_file() else {}
    if FASTER_TOKEN in found and FASTER_TOKEN in model.state_dict():
        model.load_state_dict({FASTER_TOKEN: found[FASTER_TOKEN]}, strict=False)


def _is_own(name: str) -> bool:
    """Whether plain transformers does not know a weight."""
    return not name.startswith("lmm.") or name == FASTER_TOKEN


def _plain_class(lmm: PreTrainedModel) -> type:
    return next(kind for kind in type(lmm).__mro__ if kind.__module__.startswith("transformers."))
