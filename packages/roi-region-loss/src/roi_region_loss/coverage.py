"""How much of a split a box file speaks of: a file whose names do not match trains nothing, and nobody notices."""

from dataclasses import dataclass
from pathlib import PurePath

NUM_EXAMPLES = 5
"""Names quoted in a report."""


@dataclass(frozen=True)
class BoxCoverage:
    """What a box file holds for the triplets of a split.

    Attributes:
        file: The box file.
        keyed_by: What the file's keys are, `image` or `pair`.
        num_keys: Images (or triplets) of the split.
        num_keys_found: Those that the file has an entry for, be it empty.
        num_triplets: Triplets of the split.
        num_triplets_with_pairs: Those with a pair of regions that has a weight: no other trains anything.
        num_pairs: Pairs of regions with a weight, in all.
        num_pairs_without_weight: Those without, such as pairs that the caption changes.
        dropped: Regions left out in pairing, by reason.
        missing: Some keys of the split that the file lacks.
        unused: Some keys of the file that the split lacks.
    """

    file: str
    keyed_by: str
    num_keys: int
    num_keys_found: int
    num_triplets: int
    num_triplets_with_pairs: int
    num_pairs: int
    num_pairs_without_weight: int
    dropped: dict[str, int]
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    @property
    def fraction(self) -> float:
        """Share of the split's keys that the file has; 1 for a split without triplets."""
        return self.num_keys_found / self.num_keys if self.num_keys else 1.0

    @property
    def pairs_per_triplet(self) -> float:
        """Mean number of pairs with a weight; 0 for a split without triplets."""
        return self.num_pairs / self.num_triplets if self.num_triplets else 0.0

    def describe(self) -> str:
        """One line for the log."""
        dropped = "".join(f", {count} {reason}" for reason, count in self.dropped.items())
        if self.num_pairs_without_weight:
            dropped = f", {self.num_pairs_without_weight} more without weight{dropped}"
        return (
            f"{self.file}: {self.num_keys_found} of {self.num_keys} {self.keyed_by} keys found; "
            f"{self.num_triplets_with_pairs} of {self.num_triplets} triplets have {self.num_pairs} region pairs "
            f"({self.pairs_per_triplet:.2f} per triplet{dropped})"
        )

    def check(self, min_coverage: float) -> None:
        """Check that the file has enough of the split.

        Args:
            min_coverage: Least share of the split's keys that must be in the file.

        Raises:
            ValueError: There are fewer; quotes names of both sides and says if only paths or endings differ.
        """
        if self.fraction >= min_coverage:
            return
        hint = ""
        if {PurePath(name).stem for name in self.missing} & {PurePath(name).stem for name in self.unused}:
            hint = "; the names differ in their folder or file ending only"
        raise ValueError(
            f"{self.describe()}; expected a share of {min_coverage:g} or more, got {self.fraction:.3f}. "
            f"The split has {list(self.missing)}, the file has {list(self.unused)}{hint}"
        )
