"""Putting embeddings in the place of placeholder tokens.

The processor writes as many placeholder ids as there are embeddings, so the sequence never changes its length in the
model: no index arithmetic, no re-padding of labels, and a mismatch is an error and not a shifted prompt.
"""

from collections.abc import Mapping, Sequence

from jaxtyping import Bool, Float, Int
from torch import Tensor


def splice(
    token_embeds: Float[Tensor, "batch tokens dim"],
    input_ids: Int[Tensor, "batch tokens"],
    rows: Mapping[int, Float[Tensor, "_ dim"]],
    *,
    counts: Mapping[int, Sequence[int]] | None = None,
    names: Mapping[int, str] | None = None,
) -> Float[Tensor, "batch tokens dim"]:
    """Replace the embedding of every placeholder by the next row of that placeholder.

    Rows go in order of occurrence: sample by sample, and from left to right within a sample. An id without
    occurrences and without rows is legal; its empty rows stay in the graph, so that a module that ran on a dummy row
    (see `region_core.losses`) takes part in backward.

    Args:
        token_embeds: Embeddings of `input_ids`; not changed in place.
        input_ids: Token ids with placeholders.
        rows: For each placeholder id, its embeddings for the whole batch; converted to the type of `token_embeds`.
        counts: For some placeholder ids, the number of rows of each sample. Given these, every sample is checked on
            its own, which also finds two mistakes that cancel out.
        names: For some placeholder ids, how to spell them in errors, such as "<mask>".

    Returns:
        Embeddings of the same shape, differentiable in both inputs.

    Raises:
        ValueError: A placeholder occurs more or less often than there are rows.
    """
    flat = token_embeds.flatten(0, 1)
    for placeholder, embeddings in rows.items():
        occurs = input_ids == placeholder
        # One wait for the device per placeholder: it gives the number of occurrences and the places at once.
        places = occurs.flatten().nonzero().squeeze(1)
        spelled = f"placeholder {placeholder}" if names is None or placeholder not in names else names[placeholder]
        if counts is not None and placeholder in counts:
            _check_samples(occurs, counts[placeholder], len(embeddings), spelled)
        elif len(places) != len(embeddings):
            raise ValueError(
                f"{spelled}: found {len(places)} in the batch, expected {len(embeddings)} (one per row); "
                f"per sample it occurs {occurs.sum(dim=1).tolist()} times"
            )
        flat = flat.index_copy(0, places, embeddings.to(flat.dtype))
    return flat.view_as(token_embeds) if rows else token_embeds


def _check_samples(occurs: Bool[Tensor, "batch tokens"], counts: Sequence[int], num_rows: int, spelled: str) -> None:
    """Compare the occurrences in every sample with the rows that belong to it."""
    expected = [int(count) for count in counts]
    if len(expected) != len(occurs) or sum(expected) != num_rows:
        raise ValueError(
            f"{spelled}: counts {expected} must name one number for each of {len(occurs)} samples "
            f"and add up to the {num_rows} rows given"
        )
    found = occurs.sum(dim=1).tolist()
    for sample, (found_here, expected_here) in enumerate(zip(found, expected, strict=True)):
        if found_here != expected_here:
            raise ValueError(f"{spelled}: sample {sample} has {found_here}, expected {expected_here} (one per row)")
