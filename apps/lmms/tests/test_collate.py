"""Batches of every kind of row: what is padded, what is packed, and where frames stand."""

import torch
from lmms.chat import IGNORED_LABEL
from lmms.packing import PackedSample


def test_mixed_rows_are_padded_and_keep_their_frames(each):
    samples = each.mixed()
    batch = each.collator()(samples)
    ids, attention, labels, frames = (batch[key] for key in ("input_ids", "attention_mask", "labels", "frames"))
    lengths = [len(sample.input_ids) for sample in samples]
    assert ids.shape == attention.shape == labels.shape == (len(samples), max(lengths))
    assert attention.sum(1).tolist() == lengths
    assert batch["record_ids"] == [sample.record_id for sample in samples]
    assert len(batch["decode_ms"]) == len(samples)
    for row, sample in enumerate(samples):
        length = lengths[row]
        assert torch.equal(ids[row, :length], sample.input_ids)
        assert torch.equal(labels[row, :length], sample.labels)
        assert (ids[row, length:] == each.tokenizer.pad_token_id).all()
        assert (labels[row, length:] == IGNORED_LABEL).all()
    assert frames.num_frames == sum(len(sample.layout) for sample in samples)
    read = ids.flatten()[frames.tokens.clamp(min=0)]
    assert (read[frames.token_mask] == each.family().video_token_id).all()
    assert "position_ids" not in batch


def test_on_the_left_padding_moves_the_frames_along(toy):
    samples = toy.mixed()
    right, left = (toy.collator(side=side)(samples) for side in ("right", "left"))
    assert torch.equal(left["attention_mask"].flip(1), right["attention_mask"])
    gap = torch.tensor([right["input_ids"].shape[1] - len(sample.input_ids) for sample in samples])
    moved = right["frames"].tokens + gap[right["frames"].sample][:, None]
    assert torch.equal(left["frames"].tokens, moved.where(right["frames"].token_mask, -1))


def test_visuals_of_all_samples_are_joined_in_order(toy):
    samples = toy.mixed()
    visuals = toy.collator()(samples)["visuals"]
    frames = [sample.visuals["video_frames"] for sample in samples if "video_frames" in sample.visuals]
    assert torch.equal(visuals["video_frames"], torch.cat(frames))
    assert visuals["video_frames"].dtype == torch.uint8
    assert visuals["video_lengths"].tolist() == [3, 5, 1, 2]


def test_text_alone_has_no_visuals_and_no_frames(each):
    batch = each.collator()([each.sample(()), each.sample((), question="Why?")])
    assert batch["visuals"] == {}
    assert batch["frames"].num_frames == 0
    assert batch["loss_counts"] == {"main": batch["loss_counts"]["main"], "autoregressive": 0, "autoregressive_copy": 0}


def test_items_of_every_loss_term_are_counted(toy):
    samples = toy.mixed()
    counts = toy.collator()(samples)["loss_counts"]
    assert counts["main"] == sum(int((sample.labels != IGNORED_LABEL).sum()) for sample in samples)
    # Clips of 3, 5, 1 and 2 frames have 2, 4, 0 and 1 pairs, on a grid of 2 x 2.
    assert counts["autoregressive"] == counts["autoregressive_copy"] == 7 * 4


def test_items_are_counted_for_every_scale(toy):
    scales = toy.autoregressive(enable_multiscale_pooling=True)
    counts = toy.collator(autoregressive=scales)([toy.sample((3,))])["loss_counts"]
    assert {name: count for name, count in counts.items() if name != "main"} == {
        "autoregressive/stride1": 8,
        "autoregressive/stride2": 2,
        "autoregressive_copy": 8,
    }
    assert set(toy.collator(autoregressive=None)([toy.sample((3,))])["loss_counts"]) == {"main"}


def test_announced_items_are_those_of_the_model(each):
    samples = each.mixed()
    batch = each.collator()(samples)
    output = each.model()(**each.batch(samples))
    assert {name: int(term.count) for name, term in output.losses.items()} == batch["loss_counts"]


def test_packs_share_rows_and_positions_start_anew(toy):
    samples = toy.mixed()
    packs = [PackedSample(tuple(samples[:3])), PackedSample(tuple(samples[3:]))]
    batch = toy.collator()(packs)
    ids, positions, frames = batch["input_ids"], batch["position_ids"], batch["frames"]
    assert batch["attention_mask"] is None
    assert ids.shape[0] == 2
    for row, pack in enumerate(packs):
        joined = torch.cat([sample.input_ids for sample in pack.samples])
        counted = torch.cat([torch.arange(len(sample.input_ids)) for sample in pack.samples])
        rest = ids.shape[1] - len(joined)
        assert torch.equal(ids[row], torch.cat([joined, torch.full((rest,), toy.tokenizer.pad_token_id)]))
        assert torch.equal(positions[row], torch.cat([counted, torch.arange(rest)]))
    assert batch["record_ids"] == [sample.record_id for sample in samples]
    assert frames.sample.unique().tolist() == [0, 1, 4]
    read = ids.flatten()[frames.tokens.clamp(min=0)]
    assert (read[frames.token_mask] == toy.family().video_token_id).all()
    unpacked = toy.collator()(samples)
    assert batch["loss_counts"] == unpacked["loss_counts"]
