"""The classes of one data set, each with its place in the list, its number on disk and whether it can be counted.

Every data set has a label space of its own (upstream forces all onto the largest one, so that own data clash with
COCO's names). A class's place is its position in the file's `categories`, whatever gaps the numbers on disk have.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from region_training.records import require

from psalm.modes import BACKGROUND


@dataclass(frozen=True)
class LabelSpace:
    """The classes of a data set.

    Attributes:
        names: What they are called, in the file's order; without "background", which every class list ends with.
        is_thing: Which of them are countable things; the others are stuff.
        category_ids: Their numbers on disk.

    Raises:
        ValueError: The three differ in length, a number or a name stands twice, or a class is called "background".
    """

    names: tuple[str, ...]
    is_thing: tuple[bool, ...]
    category_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check that the three agree."""
        if not len(self.names) == len(self.is_thing) == len(self.category_ids):
            raise ValueError(
                f"a label space needs one name, one is_thing and one category id per class, got {len(self.names)}, "
                f"{len(self.is_thing)} and {len(self.category_ids)}"
            )
        if len(set(self.category_ids)) != len(self.category_ids):
            twice = next(number for number in self.category_ids if self.category_ids.count(number) > 1)
            raise ValueError(f"the category id {twice} stands twice, expected one class per id")
        if len(set(self.names)) != len(self.names):
            # Classes are told apart by their names alone.
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise ValueError(f"two classes are called {twice!r}, expected a name of its own for each; rename one")
        if BACKGROUND in self.names:
            raise ValueError(
                f"a class is called {BACKGROUND!r}, which is the name of what belongs to no class; rename it or leave "
                "it out"
            )

    @classmethod
    def from_categories(cls, categories: Sequence[object], where: str) -> "LabelSpace":
        """Read COCO's `categories`: objects with `id`, `name` and, in panoptic files, `isthing`.

        Args:
            categories: As the file has them.
            where: Names the file in errors.

        Raises:
            ValueError: An entry is no such object, or two have the same id or name.
        """
        names, things, ids = [], [], []
        for index, category in enumerate(categories):
            place = f"{where}, category {index}"
            if not isinstance(category, dict):
                raise ValueError(f"{place}: got {category!r}, expected an object with 'id' and 'name'")
            names.append(require(category, "name", str, place))
            ids.append(require(category, "id", int, place))
            # Files of instances have things alone and do not say so.
            things.append(bool(require(category, "isthing", int, place)) if "isthing" in category else True)
        try:
            return cls(tuple(names), tuple(things), tuple(ids))
        except ValueError as error:
            raise ValueError(f"{where}, key 'categories': {error}") from error

    def position(self, category_id: int, where: str) -> int:
        """Place of a class by its number on disk.

        Raises:
            ValueError: There is no such class; `where` names the record.
        """
        if category_id not in self._positions:
            raise ValueError(
                f"{where}, key 'category_id': got {category_id}, which is none of the {len(self.names)} categories of "
                "the file"
            )
        return self._positions[category_id]

    @cached_property
    def _positions(self) -> Mapping[int, int]:
        return {category_id: position for position, category_id in enumerate(self.category_ids)}
