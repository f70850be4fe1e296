"""The four kinds of warehouse question, asked about a synthetic scene whose answers are known by construction.

A question is dropped when its answer would be a matter of taste: two candidates almost equally near, or two objects
almost above each other in the image.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from spatialrgpt.scenes import ObjectKind, Scene

Answer = float | int | str

MASK = "<mask>"
MAX_REGIONS = 8
MAX_COUNT = 5
NEAREST_RATIO = 1.2  # the runner-up is at least this much farther away
SIDE_MARGIN = 0.04  # of the image width, between two objects compared by side
DEPTH_MARGIN_M = 0.8  # along the floor, between two objects compared by distance from the camera


@dataclass(frozen=True)
class Question:
    """One question; `objects` index the scene in the order of the `<mask>` mentions."""

    category: str
    text: str
    objects: tuple[int, ...]
    answer: Answer
    freeform: str


class Floor:
    """A scene with what questions need to know: objects by kind, and their horizontal place in the image."""

    def __init__(self, scene: Scene, rng: np.random.Generator) -> None:
        self.objects = scene.objects
        self.rng = rng
        columns = np.arange(scene.masks.shape[2]) + 0.5
        pixels = scene.masks.sum((1, 2))
        self.centre_x = (scene.masks.sum(1) * columns).sum(1) / pixels / scene.masks.shape[2]

    def some(self, kind: ObjectKind, low: int, high: int) -> list[int]:
        """Between `low` and `high` objects of a kind in random order, or none if there are fewer than `low`."""
        found = [index for index, item in enumerate(self.objects) if item.kind == kind]
        if len(found) < low:
            return []
        count = int(self.rng.integers(low, min(high, len(found)) + 1))
        return [int(index) for index in self.rng.permutation(found)[:count]]

    def one(self, *kinds: ObjectKind) -> int | None:
        """A random object of one of the kinds."""
        found = [index for index, item in enumerate(self.objects) if item.kind in kinds]
        return int(self.rng.choice(found)) if found else None

    def nearest(self, candidates: list[int], to: int) -> int | None:
        """The candidate nearest to an object, if it is clearly the nearest."""
        distances = sorted((self.distance(index, to), index) for index in candidates)
        clear = len(distances) == 1 or distances[1][0] >= NEAREST_RATIO * distances[0][0]
        return distances[0][1] if clear else None

    def outermost(self, candidates: list[int], side: str) -> int | None:
        """The leftmost or rightmost candidate in the image, if it clearly is."""
        sign = 1 if side == "leftmost" else -1
        places = sorted((sign * float(self.centre_x[index]), index) for index in candidates)
        clear = len(places) == 1 or places[1][0] - places[0][0] >= SIDE_MARGIN
        return places[0][1] if clear else None

    def distance(self, first: int, second: int) -> float:
        """Distance in metres along the floor."""
        return self.objects[first].distance_m(self.objects[second])

    def touch(self, first: int, second: int) -> bool:
        """Whether two footprints overlap: the distance between their centres is then no sensible question."""
        return self.objects[first].overlaps(self.objects[second], 0.0)

    def name(self, index: int) -> str:
        """The object's kind, as a word."""
        return self.objects[index].kind

    def choose(self, *options: str) -> str:
        """One of several phrasings."""
        return options[int(self.rng.integers(len(options)))]


def ask_about(scene: Scene, rng: np.random.Generator, per_category: int) -> Iterator[Question]:
    """Up to `per_category` different questions of each kind."""
    floor = Floor(scene, rng)
    for makers in MAKERS.values():
        asked: set[tuple[str, tuple[int, ...]]] = set()
        for _ in range(8 * per_category):
            question = makers[int(rng.integers(len(makers)))](floor)
            if question is None or (question.text, question.objects) in asked:
                continue
            asked.add((question.text, question.objects))
            yield question
            if len(asked) == per_category:
                break


def _distance_of_pair(floor: Floor) -> Question | None:
    first, second = floor.one("pallet", "transporter", "shelf"), floor.one("pallet", "transporter", "shelf", "buffer")
    if first is None or second is None or floor.touch(first, second):
        return None
    one, two = floor.name(first), floor.name(second)
    text = floor.choose(
        f"How far is the {one} {MASK} from the {two} {MASK}?",
        f"What is the distance between the {one} {MASK} and the {two} {MASK}?",
        f"How distant is the {one} {MASK} from the {two} {MASK}?",
    )
    return _distance(floor, text, (first, second), first, second)


def _distance_of_outermost(floor: Floor) -> Question | None:
    pallets, anchor = floor.some("pallet", 2, 5), floor.one("transporter", "shelf")
    side = floor.choose("leftmost", "rightmost")
    if not pallets or anchor is None or (chosen := floor.outermost(pallets, side)) is None:
        return None
    mentions = _list_of(len(pallets))
    name = floor.name(anchor)
    text = floor.choose(
        f"Among the pallets {mentions}, how far is the {side} one from the {name} {MASK}?",
        f"Considering the pallets {mentions}, what is the distance of the {side} pallet to the {name} {MASK}?",
    )
    return _distance(floor, text, (*pallets, anchor), chosen, anchor)


def _distance_of_nearest(floor: Floor) -> Question | None:
    pallets, anchor = floor.some("pallet", 2, 5), floor.one("transporter", "buffer")
    if not pallets or anchor is None or (chosen := floor.nearest(pallets, anchor)) is None:
        return None
    if floor.touch(chosen, anchor):
        return None
    text = f"How far is the {floor.name(anchor)} {MASK} from the closest of the pallets {_list_of(len(pallets))}?"
    return _distance(floor, text, (anchor, *pallets), chosen, anchor)


def _distance(floor: Floor, text: str, objects: tuple[int, ...], chosen: int, anchor: int) -> Question:
    metres = round(floor.distance(chosen, anchor), 2)
    freeform = f"The {_refer(floor, objects, chosen)} is {metres:.2f} meters from the {_refer(floor, objects, anchor)}."
    return Question("distance", text, objects, metres, freeform)


def _left_right(floor: Floor) -> Question | None:
    first, second = floor.one("pallet", "transporter", "shelf"), floor.one("pallet", "transporter", "shelf", "buffer")
    if first is None or second is None or abs(floor.centre_x[first] - floor.centre_x[second]) < SIDE_MARGIN:
        return None
    one, two = floor.name(first), floor.name(second)
    text = floor.choose(
        f"Is the {one} {MASK} to the left or right of the {two} {MASK}?",
        f"Is the {one} {MASK} on the right side of the {two} {MASK}?",
        f"Does the {one} {MASK} stand left of the {two} {MASK}?",
    )
    answer = "left" if floor.centre_x[first] < floor.centre_x[second] else "right"
    objects = (first, second)
    freeform = f"The {_refer(floor, objects, first)} is to the {answer} of the {_refer(floor, objects, second)}."
    return Question("left_right", text, objects, answer, freeform)


def _choose_nearest(floor: Floor) -> Question | None:
    pallets, anchor, extra = floor.some("pallet", 2, 6), floor.one("transporter", "buffer"), floor.one("shelf")
    if not pallets or anchor is None or extra is None or (chosen := floor.nearest(pallets, anchor)) is None:
        return None
    mentions, name = _list_of(len(pallets)), floor.name(anchor)
    if len(pallets) + 2 <= MAX_REGIONS and floor.rng.random() < 0.5:  # the shelf only distracts
        objects = (*pallets, extra, anchor)
        text = f"Given the pallets {mentions}, the shelf {MASK} and the {name} {MASK}, " + floor.choose(
            f"which pallet is nearest to the {name}?", f"what pallet would be the quickest to reach for the {name}?"
        )
    else:
        objects = (anchor, *pallets)
        text = floor.choose(
            f"From the {name} {MASK}, which of the pallets {mentions} is the closest?",
            f"Which one is nearest to the {name} {MASK} among the pallets {mentions}?",
        )
    freeform = f"The {_refer(floor, objects, chosen)} is the closest to the {_refer(floor, objects, anchor)}."
    return Question("mcq", text, objects, objects.index(chosen), freeform)


def _choose_outermost(floor: Floor) -> Question | None:
    pallets, extra = floor.some("pallet", 2, 6), floor.one("shelf", "transporter")
    side = floor.choose("leftmost", "rightmost")
    if not pallets or extra is None or (chosen := floor.outermost(pallets, side)) is None:
        return None
    mentions, name = _list_of(len(pallets)), floor.name(extra)
    objects = (extra, *pallets)
    text = floor.choose(
        f"Besides the {name} {MASK} there are the pallets {mentions}. Which pallet is the {side}?",
        f"With the {name} {MASK} in view, which of the pallets {mentions} is the {side} one?",
    )
    freeform = f"The {_refer(floor, objects, chosen)} is the {side} pallet."
    return Question("mcq", text, objects, objects.index(chosen), freeform)


def _count_in_buffer(floor: Floor) -> Question | None:
    pallets, buffer = floor.some("pallet", 2, 7), floor.one("buffer")
    if not pallets or buffer is None:
        return None
    inside = [index for index in pallets if floor.objects[buffer].holds(floor.objects[index])]
    mentions = _list_of(len(pallets))
    if floor.rng.random() < 0.5:
        objects = (buffer, *pallets)
        text = f"How many pallets are in the buffer {MASK}, looking at the pallets {mentions}?"
    else:
        objects = (*pallets, buffer)
        text = f"Count the pallets that stand in the buffer, given the pallets {mentions} and the buffer {MASK}."
    return _count(floor, text, objects, inside, f"in the {_refer(floor, objects, buffer)}")


def _count_left(floor: Floor) -> Question | None:
    pallets, anchor = floor.some("pallet", 2, 7), floor.one("shelf", "transporter")
    if not pallets or anchor is None:
        return None
    offsets = floor.centre_x[pallets] - floor.centre_x[anchor]
    if np.abs(offsets).min() < SIDE_MARGIN:
        return None
    members = [index for index, offset in zip(pallets, offsets, strict=True) if offset < 0]
    mentions, name = _list_of(len(pallets)), floor.name(anchor)
    text = floor.choose(
        f"How many of the pallets {mentions} are to the left of the {name} {MASK}?",
        f"What is the number of pallets among {mentions} on the left side of the {name} {MASK}?",
    )
    return _count(floor, text, (*pallets, anchor), members, f"to the left of the {name}")


def _count_nearer(floor: Floor) -> Question | None:
    pallets, anchor = floor.some("pallet", 2, 7), floor.one("shelf", "transporter")
    if not pallets or anchor is None:
        return None
    offsets = [floor.objects[index].z - floor.objects[anchor].z for index in pallets]
    if min(map(abs, offsets)) < DEPTH_MARGIN_M:
        return None
    members = [index for index, offset in zip(pallets, offsets, strict=True) if offset < 0]
    mentions, name = _list_of(len(pallets)), floor.name(anchor)
    text = f"How many of the pallets {mentions} stand nearer to the camera than the {name} {MASK}?"
    return _count(floor, text, (*pallets, anchor), members, f"nearer than the {name}")


def _count(floor: Floor, text: str, objects: tuple[int, ...], members: list[int], where: str) -> Question | None:
    if len(members) > MAX_COUNT:
        return None
    freeform = f"There {'is 1 pallet' if len(members) == 1 else f'are {len(members)} pallets'} {where}"
    if members:
        freeform += ": " + ", ".join(_refer(floor, objects, index) for index in members)
    return Question("count", text, objects, len(members), freeform + ".")


def _list_of(count: int) -> str:
    return " ".join([MASK] * count)


def _refer(floor: Floor, objects: tuple[int, ...], index: int) -> str:
    return f"{floor.name(index)} [Region {objects.index(index)}]"


MAKERS: dict[str, tuple[Callable[[Floor], Question | None], ...]] = {
    "distance": (_distance_of_pair, _distance_of_outermost, _distance_of_nearest),
    "left_right": (_left_right,),
    "mcq": (_choose_nearest, _choose_outermost),
    "count": (_count_in_buffer, _count_left, _count_nearer),
}
