"""`lmms check-data`: decode every video of a data set before a training run does, and write down what is in it.

Videos are decoded in processes that are killed when they hang. The manifest keeps what was found: training leaves out
the records of bad videos, and a second check decodes only what is new, has changed or was bad.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from statistics import median

from region_training.images import read_image
from region_training.records import resolve_under
from region_training.tables import Table
from rich.console import Console
from rich.progress import track
from video_autoregressive.backends import VideoBackend, backend_of
from video_autoregressive.frame_folder import FrameFolder
from video_autoregressive.isolation import DecodeWorker

from lmms.check_video import PIECE, check_piece, probe_video
from lmms.manifest import FileState, Manifest, ManifestEntry
from lmms.records import Record, parse_record
from lmms.rows import Rows, read_rows
from lmms.verbs import CheckDataSettings

logger = logging.getLogger(__name__)

MAX_SHOWN = 20


@dataclass
class Findings:
    """What is in a data set.

    Attributes:
        records: All of them that can be read, with the place where each stands.
        faults: What is wrong with the others, one sentence each.
        videos: What was found of each video, by the name that records give it.
        pictures: What is wrong with each picture, None where nothing is.
    """

    records: list[tuple[str, Record]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    videos: dict[str, ManifestEntry] = field(default_factory=dict)
    pictures: dict[str, str | None] = field(default_factory=dict)

    def bad_records(self) -> list[str]:
        """One sentence for every record that cannot be trained on."""
        sentences = list(self.faults)
        for where, record in self.records:
            errors = {name: self.videos[name].error for name in record.videos}
            errors |= {name: self.pictures[name] for name in record.images}
            sentences += [f"{where}: {name!r}: {error}" for name, error in errors.items() if error][:1]
        return sentences


def check_data(settings: CheckDataSettings) -> int:
    """Read every record, decode every video, read every picture, and write the manifest.

    Returns:
        Exit code: 0 when all can be read, 1 when some cannot.
    """
    root, manifest = Path(settings.root), Path(settings.root) / settings.manifest
    findings = read_all(read_rows(root, settings.files))
    known = Manifest.read(manifest) if manifest.is_file() else Manifest([])
    backend = backend_of(settings.backend)
    videos = dict.fromkeys(name for _, record in findings.records for name in record.videos)
    findings.videos = dict(known.entries)
    try:
        for entry in check_videos(list(videos), settings, backend, known):
            findings.videos[entry.path] = entry
    finally:  # what an interrupted check has found is kept
        Manifest(findings.videos.values()).write(manifest)
    findings.videos = {name: findings.videos[name] for name in videos}
    pictures = list(dict.fromkeys(name for _, record in findings.records for name in record.images))
    with ThreadPoolExecutor(settings.num_workers) as pool:
        reasons = pool.map(lambda name: _picture_fault(root, name), pictures)
        shown = track(reasons, description="reading pictures", total=len(pictures), disable=not pictures)
        findings.pictures = dict(zip(pictures, shown, strict=True))
    bad = findings.bad_records()
    console = Console()
    _summary(findings, len(bad)).show()
    for sentence in bad[:MAX_SHOWN]:
        console.print(f"bad: {sentence}", markup=False, style="red")
    if len(bad) > MAX_SHOWN:
        console.print(f"... and {len(bad) - MAX_SHOWN} more", style="red")
    console.print(f"manifest: {manifest}", markup=False)
    return 1 if bad else 0


def read_all(rows: Rows) -> Findings:
    """Parse every record."""
    findings = Findings()
    for index in range(len(rows)):
        try:
            findings.records.append((rows.where(index), parse_record(rows[index], rows.where(index))))
        except ValueError as error:
            findings.faults.append(str(error))
    return findings


def check_videos(
    names: Sequence[str], settings: CheckDataSettings, backend: VideoBackend, known: Manifest
) -> Iterator[ManifestEntry]:
    """Decode videos in `settings.num_workers` processes, and yield an entry for each.

    Args:
        names: As records name them.
        settings: Where they are, how many frames to decode, how long that may take.
        backend: Decodes files.
        known: An earlier manifest; what it found good is not decoded again while the file is the same.
    """
    root = Path(settings.root)
    idle: SimpleQueue[DecodeWorker] = SimpleQueue()
    for _ in range(settings.num_workers):
        idle.put(DecodeWorker(settings.timeout_s))

    def check(name: str) -> ManifestEntry:
        try:
            path = resolve_under(root, name, "video")
            entry = known.find(name, path)
            if entry is not None and entry.info is not None and _covers(entry.frames, settings.frames):
                return entry
            state = FileState.of(path)
        except (ValueError, OSError) as error:
            return ManifestEntry(name, None, settings.frames, error=str(error))
        worker = idle.get()
        reader = FrameFolder() if path.is_dir() else backend
        try:
            info = worker.run(path, reader.name, probe_video, reader, path)
            for begin in range(0, min(settings.frames or info.num_frames, info.num_frames), PIECE):
                worker.run(path, reader.name, check_piece, reader, path, begin, settings.frames)
        except (ValueError, OSError) as error:
            return ManifestEntry(name, state, settings.frames, error=str(error))
        finally:
            idle.put(worker)
        return ManifestEntry(name, state, settings.frames, info=info)

    with ThreadPoolExecutor(settings.num_workers) as pool:
        found = pool.map(check, names)
        try:
            yield from track(found, description="decoding videos", total=len(names), disable=not names)
        finally:
            pool.shutdown(cancel_futures=True)
            while not idle.empty():
                idle.get().close()


def _covers(done: int, wanted: int) -> bool:
    """Whether decoding `done` frames of a video says what `wanted` would; 0 stands for all."""
    return done == 0 or (wanted != 0 and done >= wanted)


def _picture_fault(root: Path, name: str) -> str | None:
    try:
        read_image(resolve_under(root, name, "picture"))
    except (ValueError, OSError) as error:
        return str(error)
    return None


def _summary(findings: Findings, num_bad: int) -> Table:
    records = [record for _, record in findings.records]
    infos = [entry.info for entry in findings.videos.values() if entry.info is not None]
    rows: list[tuple[str, str]] = [
        ("records", str(len(records) + len(findings.faults))),
        ("bad records", str(num_bad)),
        ("kinds", _listed(Counter(record.kind or "none" for record in records))),
        ("media per record", _listed(Counter(_media_words(record) for record in records))),
        ("videos", str(len(findings.videos))),
        ("bad videos", str(len(findings.videos) - len(infos))),
        ("pictures", str(len(findings.pictures))),
        ("bad pictures", str(sum(reason is not None for reason in findings.pictures.values()))),
    ]
    if infos:
        rows += [
            ("frames", _spread([info.num_frames for info in infos], ".0f")),
            ("frames per second", _spread([info.fps for info in infos], ".2f")),
            ("duration in s", _spread([info.duration_s for info in infos], ".2f")),
            ("codecs", _listed(Counter(info.codec for info in infos))),
            ("variable rate", str(sum(info.is_vfr for info in infos))),
            ("rotated", str(sum(info.rotation != 0 for info in infos))),
            ("folders of frames", str(sum(info.kind == "folder" for info in infos))),
        ]
    return Table("data", ("what", "found"), tuple(rows))


def _media_words(record: Record) -> str:
    counted = {"video": len(record.videos), "picture": len(record.images)}
    words = [f"{count} {noun}{'s' if count > 1 else ''}" for noun, count in counted.items() if count]
    return " and ".join(words) or "text alone"


def _spread(values: Sequence[float | int], form: str) -> str:
    return (
        " / ".join(f"{value:{form}}" for value in (min(values), median(values), max(values))) + " (least, median, most)"
    )


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in sorted(counts.items())) or "-"
