"""SPRC's Q-Former: four passes of one network (Bai et al. 2024, arXiv:2310.05473).

BLIP-2's Q-Former reads learned queries, captions, or both. SPRC runs it four times:

| pass | sequence | image | result |
|---|---|---|---|
| `fuse` | queries, caption | reference | fused queries: the sentence-level prompt |
| `read_prompted` | fused queries, caption | none | the composed query, at the caption's [CLS] |
| `encode_image` | queries | target | the target's features, one per query |
| `read_soft_prompts` | [CLS], soft prompts, rest of the caption | none | the auxiliary query, at [CLS] |

Without an image LAVIS sends every position through the *text* feed-forward layers, prompts included; in transformers
that is `query_length=0`. The first pass and the second differ in it, so the argument is given explicitly everywhere.
"""

import torch
from jaxtyping import Float, Int, Num
from roi_region_loss.contrastive import unit_rows
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Blip2QFormerModel
from transformers.models.blip_2.modeling_blip_2 import Blip2TextEmbeddings

from sprc.configuration import SPRCConfig


class LearnedTokens(nn.Module):
    """Learned embeddings that take part in every sequence of a batch.

    A module, not a bare parameter: ZeRO-3 brings a parameter back when its own module runs.

    Args:
        num_tokens: How many.
        dim: Their width.
    """

    def __init__(self, num_tokens: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_tokens, dim))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, batch_size: int, num_tokens: int | None = None) -> Float[Tensor, "batch tokens dim"]:
        """The tokens, or the first `num_tokens` of them, once per sequence."""
        return self.weight[:num_tokens].repeat(batch_size, 1, 1)


class QueryComposer(nn.Module):
    """Queries, soft prompts, text embeddings, Q-Former and projections.

    Args:
        config: Sizes.
    """

    def __init__(self, config: SPRCConfig) -> None:
        super().__init__()
        dim = config.qformer.hidden_size
        self.num_queries = config.num_query_tokens
        self.query_tokens = LearnedTokens(config.num_query_tokens, dim)
        self.prompt_tokens = LearnedTokens(config.num_query_tokens, dim)
        self.embeddings = Blip2TextEmbeddings(config.qformer)
        self.qformer = Blip2QFormerModel._from_config(config.qformer)
        self.vision_projection = nn.Linear(dim, config.image_text_hidden_size)
        self.text_projection = nn.Linear(dim, config.image_text_hidden_size)

    def fuse(
        self,
        image: Float[Tensor, "batch keys channels"],
        input_ids: Int[Tensor, "batch words"],
        attention_mask: Num[Tensor, "batch words"],
    ) -> Float[Tensor, "batch queries dim"]:
        """Let queries read a normed reference image and a caption together."""
        sequence = self.embeddings(input_ids=input_ids, query_embeds=self.query_tokens(len(input_ids)))
        states = self._run(sequence, self._mask(attention_mask), query_length=self.num_queries, image=image)
        return states[:, : self.num_queries]

    def read_prompted(
        self,
        fused: Float[Tensor, "batch queries dim"],
        input_ids: Int[Tensor, "batch words"],
        attention_mask: Num[Tensor, "batch words"],
    ) -> Float[Tensor, "batch shared"]:
        """The composed query, of length 1: the caption read behind the fused queries."""
        sequence = self.embeddings(input_ids=input_ids, query_embeds=fused)
        states = self._run(sequence, self._mask(attention_mask), query_length=0)
        return unit_rows(self.text_projection(states[:, self.num_queries]))

    def encode_image(self, image: Float[Tensor, "batch keys channels"]) -> Float[Tensor, "batch queries shared"]:
        """Features of length 1 of a normed image, one per query."""
        return unit_rows(self.project_image(image))

    def project_image(
        self, keys: Float[Tensor, "batch keys channels"], num_queries: int | None = None
    ) -> Float[Tensor, "batch queries shared"]:
        """What the queries read in an image, or in the keys of one region, before the length is taken out.

        Args:
            keys: Normed tokens of an image, or what RoIAlign made of a region.
            num_queries: Only the first so many queries read; all by default. They see each other, so this is not the
                first rows of what all would read.
        """
        queries = self.query_tokens(len(keys), num_queries)
        states = self._run(queries, None, query_length=queries.shape[1], image=keys)
        return self.vision_projection(states)

    def read_soft_prompts(
        self, input_ids: Int[Tensor, "batch words"], attention_mask: Num[Tensor, "batch words"]
    ) -> Float[Tensor, "batch shared"]:
        """The auxiliary query, of length 1: the caption read with the soft prompts behind its [CLS].

        Positions count all of [CLS], prompts and words, where `read_prompted` counts words alone.
        """
        words = self.embeddings.word_embeddings(input_ids)
        sequence = torch.cat([words[:, :1], self.prompt_tokens(len(words)).to(words.dtype), words[:, 1:]], dim=1)
        positions = torch.arange(sequence.shape[1], device=sequence.device)
        sequence = sequence + self.embeddings.position_embeddings(positions)
        # [CLS] is never padding, so the mask of "prompts, caption" is that of "[CLS], prompts, rest" too.
        states = self._run(sequence, self._mask(attention_mask), query_length=0)
        return unit_rows(self.text_projection(states[:, 0]))

    def mean_prompt(self) -> Float[Tensor, " dim"]:
        """Mean of the soft prompts, without gradient: what fused queries are aligned to."""
        return self.prompt_tokens(1).detach().mean(dim=(0, 1))

    def _mask(self, attention_mask: Num[Tensor, "batch words"]) -> Num[Tensor, "batch sequence"]:
        return F.pad(attention_mask, (self.num_queries, 0), value=1)

    def _run(
        self,
        sequence: Float[Tensor, "batch sequence dim"],
        mask: Num[Tensor, "batch sequence"] | None,
        *,
        query_length: int,
        image: Float[Tensor, "batch keys channels"] | None = None,
    ) -> Float[Tensor, "batch sequence dim"]:
        return self.qformer(
            query_embeds=sequence, query_length=query_length, attention_mask=mask, encoder_hidden_states=image
        ).last_hidden_state
