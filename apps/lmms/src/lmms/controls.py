"""What a model is shown to learn what its answers rest on: the frames in another order, or another record's video.

A control is a data set that reads its media differently; everything behind the reading is the data set's own.
"""

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from video_autoregressive.loader import VideoClip

from lmms.data import VideoDataset
from lmms.media import MediaReader, RecordMedia
from lmms.records import Record


class RememberingReader(MediaReader):
    """Reads as another reader does, and gives the last media again when they are asked for again.

    Args:
        reader: The reader.
    """

    def __init__(self, reader: MediaReader) -> None:
        vars(self).update(vars(reader))
        self._last: tuple[object, RecordMedia] | None = None

    def read(self, record: Record, where: str, max_frames: int | None = None) -> RecordMedia:
        """Read a record's files, unless they are the last ones."""
        key = (record.videos, record.images, max_frames)
        if self._last is None or self._last[0] != key:
            self._last = key, super().read(record, where, max_frames)
        return self._last[1]


class ShufflingReader(MediaReader):
    """Reads as another reader does, and shuffles the frames of every clip; their times stay in order.

    Args:
        reader: The reader.
        shuffle: From a clip and its name to the shuffled clip; by default `shuffle_frames`.
    """

    def __init__(self, reader: MediaReader, shuffle: Callable[[VideoClip, str], VideoClip] | None = None) -> None:
        vars(self).update(vars(reader))
        self._reader = reader
        self._shuffle = shuffle or shuffle_frames

    def read(self, record: Record, where: str, max_frames: int | None = None) -> RecordMedia:
        """Read a record's files; the same record is always shuffled alike."""
        media = self._reader.read(record, where, max_frames)
        clips = tuple(self._shuffle(clip, f"{where} {place}") for place, clip in enumerate(media.clips))
        return replace(media, clips=clips)


class ExchangingReader(MediaReader):
    """Reads as another reader does, but other videos.

    Args:
        reader: The reader.
        videos: What to read instead of a record's videos, by where the record stands.
    """

    def __init__(self, reader: MediaReader, videos: Mapping[str, tuple[str, ...]]) -> None:
        vars(self).update(vars(reader))
        self._videos = videos

    def read(self, record: Record, where: str, max_frames: int | None = None) -> RecordMedia:
        """Read a record's pictures, and another one's videos."""
        wanted = self._videos.get(where, record.videos)[: len(record.videos)]
        return super().read(replace(record, videos=wanted), where, max_frames)


def reading_with(dataset: VideoDataset, reader: MediaReader, *, with_answers: bool) -> VideoDataset:
    """The same records, read by another reader, with answers or as prompts."""
    other = copy.copy(dataset)
    other.reader = reader
    other.with_answers = with_answers
    return other


def shuffle_frames(clip: VideoClip, name: str) -> VideoClip:
    """A clip with its frames in another order at the same times.

    Args:
        clip: With two frames or more; a shorter one stays as it is.
        name: Decides on the order, which is never the right one.
    """
    count = len(clip.frames)
    if count < 2:
        return clip
    rng = np.random.default_rng(_number(name))
    order = rng.permutation(count)
    while (order == np.arange(count)).all():
        order = rng.permutation(count)
    return replace(clip, frames=clip.frames[torch.from_numpy(order)])


def videos_of_others(dataset: VideoDataset, indices: Sequence[int]) -> dict[int, tuple[str, ...]]:
    """For every record with videos those of another one that asks the same kind of question, always the same ones.

    Args:
        dataset: The records.
        indices: Which of them take part.

    Returns:
        Index of the record -> videos; records that share their videos with all others of their kind are left out.
    """
    groups: dict[tuple[str | None, int], list[tuple[int, tuple[str, ...]]]] = {}
    for index in indices:
        record = dataset.record(index)
        if record.videos:
            groups.setdefault((record.kind, len(record.videos)), []).append((index, record.videos))
    taken: dict[int, tuple[str, ...]] = {}
    for group in groups.values():
        group.sort(key=lambda entry: _number(str(entry[0])))
        for place, (index, own) in enumerate(group):
            behind = (videos for _, videos in group[place + 1 :] + group[:place] if videos != own)
            if (other := next(behind, None)) is not None:
                taken[index] = other
    return taken


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
