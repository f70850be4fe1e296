"""Records -> samples: videos decoded and sampled, pictures read, the conversation encoded with its frames in place.

A sample is a function of the record, its files and the settings alone: nothing is drawn at random, so processes, ranks
and resumed runs all read the same.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from video_autoregressive.config import AutoregressiveConfig
from video_autoregressive.frames import VideoInfo
from video_autoregressive.loader import VideoClip

from lmms.chat import ChatEncoder
from lmms.config import DataSettings
from lmms.families import Family, PreparedImages, PreparedVideo, Visuals
from lmms.manifest import Manifest
from lmms.media import MediaReader, RecordMedia
from lmms.records import Record, Turn, parse_record
from lmms.rows import Rows, read_rows
from lmms.sample import VideoSample
from lmms.time_instruction import describe_times, insert_behind_videos

logger = logging.getLogger(__name__)

UNKNOWN_TIME_S = 99_999.99
"""Stands for a time that is not known yet when tokens are counted; no real one has more digits."""


class VideoDataset(Dataset):
    """Samples of records with videos, pictures, both or neither.

    Args:
        rows: The records.
        family: The model's family with its processor.
        settings: Where the files are, and how frames are drawn.
        autoregressive: Settings of the reconstruction loss, whose stream may decide which frames are drawn.
        manifest: What is known of the videos; records of a quarantined one are left out.
        with_answers: Keep the assistant's turns; without them a sample is the prompt of the first answer.
    """

    def __init__(
        self,
        rows: Rows,
        family: Family,
        settings: DataSettings,
        *,
        autoregressive: AutoregressiveConfig | None = None,
        manifest: Manifest | None = None,
        with_answers: bool = True,
    ) -> None:
        self.rows = rows
        self.family = family
        self.settings = settings
        self.with_answers = with_answers
        self.encoder = ChatEncoder(family)
        self.reader = MediaReader(settings, family.frame_size, autoregressive=autoregressive, manifest=manifest)
        self._kept = np.array([at for at in range(len(rows)) if not self._is_left_out(at)], dtype=np.int64)
        if len(self._kept) < len(rows):
            left_out = len(rows) - len(self._kept)
            logger.info("left out %d of %d records, whose videos are bad by the manifest", left_out, len(rows))
        self._blanks: dict[int, PreparedVideo] = {}

    @classmethod
    def open(
        cls,
        settings: DataSettings,
        files: Sequence[str],
        family: Family,
        *,
        autoregressive: AutoregressiveConfig | None = None,
        with_answers: bool = True,
    ) -> "VideoDataset":
        """Read the record files, and the manifest where the settings name one.

        Raises:
            ValueError: A file is missing, or is not such a file.
        """
        root = Path(settings.root)
        return cls(
            read_rows(root, files),
            family,
            settings,
            autoregressive=autoregressive,
            manifest=None if settings.manifest is None else Manifest.read(root / settings.manifest),
            with_answers=with_answers,
        )

    def __len__(self) -> int:
        """Number of records, without those that the manifest leaves out."""
        return len(self._kept)

    def where(self, index: int) -> str:
        """What to call a record in an error."""
        return self.rows.where(int(self._kept[index]))

    def record(self, index: int) -> Record:
        """One record, without its files, answers included.

        Raises:
            ValueError: It is not such a record; the message names it and the key.
        """
        return self._record(index, self.where(index))

    def readable_records(self) -> Iterator[Record]:
        """All records that can be parsed, without their files; a bad one is counted where it is trained on."""
        for index in range(len(self)):
            try:
                record = self.record(index)
            except ValueError:
                continue
            yield record

    def __getitem__(self, index: int) -> VideoSample:
        """Read one record with its files.

        Raises:
            ValueError: The record or one of its files is not as it must be; the message names the record.
        """
        index = range(len(self))[index]
        where, settings = self.where(index), self.settings
        record = self._asked(self._record(index, where))
        num_frames = self._frames_that_fit(record, where)
        while True:
            media = self.reader.read(record, where, num_frames)
            videos = [self.family.prepare_video(clip) for clip in media.clips]
            sample = self._encode(record, media, videos, index, where)
            length = len(sample.input_ids)
            if length <= settings.max_length:
                return sample
            longest = max((len(clip.times) for clip in media.clips), default=0)
            fewer = self._fewer(record, media, longest, where)
            if fewer is None or fewer >= num_frames:
                what = "tokens" if settings.overlong == "raise" else f"tokens with {longest} frames and none to spare"
                raise ValueError(f"{where}: {length} {what}, expected at most {settings.max_length} (data.max_length)")
            num_frames = fewer

    def make_sample(self, record: Record, media: RecordMedia, *, index: int = 0, where: str) -> VideoSample:
        """A sample from a record and what its files hold, or other clips and pictures in their place.

        Raises:
            ValueError: Mentions and media differ in number, or nothing can be learned.
        """
        videos = [self.family.prepare_video(clip) for clip in media.clips]
        return self._encode(self._asked(record), media, videos, index, where)

    def longest(self, index: int) -> int:
        """Most tokens that a sample can have, without decoding its videos.

        Raises:
            ValueError: The record is not as it must be, or the model's frames have no fixed size.
        """
        where = self.where(index)
        record = self._asked(self._record(index, where))
        return self._count_tokens(record, self._blanks_of(record, self._frames_that_fit(record, where)), where)

    def _encode(
        self, record: Record, media: RecordMedia, videos: Sequence[PreparedVideo], index: int, where: str
    ) -> VideoSample:
        images = self._prepare_images(media)
        turns = self._with_times(record, [(clip.times.tolist(), clip.info.duration_s) for clip in media.clips])
        chat = self.encoder.encode(turns, videos, images.texts, with_answers=self.with_answers, where=where)
        return VideoSample(
            index=index,
            record_id=record.id,
            input_ids=chat.input_ids,
            labels=chat.labels,
            layout=chat.layout,
            visuals=self._joined([*(video.visuals for video in videos), images.visuals]),
            num_frames=sum(len(clip.times) for clip in media.clips),
            decode_ms=media.decode_ms,
        )

    def _joined(self, visuals: Sequence[Visuals]) -> Visuals:
        shown = [own for own in visuals if own]
        return shown[0] if len(shown) == 1 else self.family.collate_visuals(shown)  # joining one would copy its frames

    def _record(self, index: int, where: str) -> Record:
        return parse_record(self.rows[int(self._kept[index])], where)

    def _asked(self, record: Record) -> Record:
        return record if self.with_answers else record.prompt()

    def _with_times(self, record: Record, times: Sequence[tuple[list[float], float]]) -> Sequence[Turn]:
        """The conversation, with times of frames and durations behind the videos where the settings ask for it."""
        if not self.settings.time_instruction:
            return record.turns
        return insert_behind_videos(record.turns, [describe_times(own, duration_s) for own, duration_s in times])

    def _prepare_images(self, media: RecordMedia) -> PreparedImages:
        return self.family.prepare_images(media.images) if media.images else PreparedImages({}, ())

    def _is_left_out(self, row: int) -> bool:
        if self.reader.manifest is None:
            return False
        try:
            return self.reader.is_quarantined(parse_record(self.rows[row], ""))
        except ValueError:
            return False  # a bad record, which is said when it is read

    def _frames_that_fit(self, record: Record, where: str) -> int:
        """Most frames per clip, so that the sample is not too long; known in advance for frames of a fixed size.

        What does not fit with `min_frames` either is left as it is, and is an error when it has been read.
        """
        num_frames, settings = self.reader.max_frames, self.settings
        if settings.overlong == "raise" or self.family.frame_size is None or not record.videos:
            return num_frames
        num_frames = min(num_frames, max(self.reader.most_frames(name) for name in record.videos))

        def fits(number: int) -> bool:
            return self._count_tokens(record, self._blanks_of(record, number), where) <= settings.max_length

        return num_frames if fits(num_frames) else _largest(settings.min_frames, num_frames - 1, fits) or num_frames

    def _fewer(self, record: Record, media: RecordMedia, num_frames: int, where: str) -> int | None:
        """How many frames fit instead of `num_frames`, which do not; None where there is no such number."""
        settings, images = self.settings, self._prepare_images(media)

        def fits(number: int) -> bool:
            clips = [_first_frames(clip, number) for clip in media.clips]
            turns = self._with_times(record, [(clip.times.tolist(), clip.info.duration_s) for clip in clips])
            videos = [self.family.prepare_video(clip) for clip in clips]
            return self.encoder.count_tokens(turns, videos, images.texts, where=where) <= settings.max_length

        return None if settings.overlong == "raise" else _largest(settings.min_frames, num_frames - 1, fits)

    def _count_tokens(self, record: Record, videos: Sequence[PreparedVideo], where: str) -> int:
        """Tokens of a record with such videos, whose times are not known."""
        unknown = [([UNKNOWN_TIME_S] * len(video.spans), UNKNOWN_TIME_S) for video in videos]
        images = RecordMedia(images=tuple(self.reader.read_image(name, where) for name in record.images))
        texts = self._prepare_images(images).texts
        return self.encoder.count_tokens(self._with_times(record, unknown), videos, texts, where=where)

    def _blanks_of(self, record: Record, num_frames: int) -> list[PreparedVideo]:
        """Stand-ins for the videos of a record: their tokens are those of any video with so many frames."""
        counts = [min(num_frames, self.reader.most_frames(name)) for name in record.videos]
        for count in set(counts) - set(self._blanks):
            size = self.family.frame_size
            if size is None:
                raise ValueError(f"the tokens of a {self.family.model_type} video are not known before it is decoded")
            self._blanks[count] = replace(self.family.prepare_video(_blank_clip(count, *size)), visuals={})
        return [self._blanks[count] for count in counts]


def _blank_clip(num_frames: int, height: int, width: int) -> VideoClip:
    return VideoClip(
        frames=torch.zeros(num_frames, 3, height, width, dtype=torch.uint8),
        times=torch.arange(num_frames, dtype=torch.float64),
        indices=torch.arange(num_frames),
        valid=torch.ones(num_frames, dtype=torch.bool),
        info=VideoInfo(num_frames, 1.0, float(num_frames), width, height, 0, "raw", False, "tensor"),
    )


def _first_frames(clip: VideoClip, count: int) -> VideoClip:
    return replace(
        clip,
        frames=clip.frames[:count],
        times=clip.times[:count],
        indices=clip.indices[:count],
        valid=clip.valid[:count],
    )


def _largest(least: int, most: int, fits: Callable[[int], bool]) -> int | None:
    """The largest number that fits; where one does, all smaller ones do. None where `least` does not."""
    if least > most or not fits(least):
        return None
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if fits(middle) else (least, middle - 1)
    return least
