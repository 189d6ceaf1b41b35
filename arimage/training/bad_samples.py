"""Samples that cannot be used: each is named once and counted once, against the data set that it belongs to."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from arimage.files import write_whole

FILE = "bad-samples.txt"


@dataclass(frozen=True)
class BadSample:
    """One of them.

    Attributes:
        data: the data set.
        name, reason: the sample's name in it, and what is wrong.
        count: how many samples it stands for.
    """

    data: str
    name: str
    reason: str
    count: int = 1


class BadSamples:
    """All that were found since the run was started; a start looks at the whole data anew.

    Args:
        folder: where ``bad-samples.txt`` names them; None writes nothing.
        most: the share of a data set that may be bad, rounded up to whole samples.
        sizes: how many samples each data set has; endless ones are left out.
        shared: several processes find them, and say when the file is to be written: :meth:`write`.
    """

    def __init__(self, folder: Path | None, most: float, sizes: Mapping[str, int], *, shared: bool = False) -> None:
        self.file = None if folder is None else folder / FILE
        self.most, self.sizes, self.shared = most, sizes, shared
        self.found: dict[tuple[str, str], BadSample] = {}
        if self.file is not None and not shared:
            self.file.unlink(missing_ok=True)

    def add(self, bad: Iterable[BadSample]) -> None:
        """Name those that are new."""
        new = {(one.data, one.name): one for one in bad if (one.data, one.name) not in self.found}
        self.found |= new
        if new and self.file is not None and not self.shared:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as handle:
                handle.writelines(f"{one.reason}\n" for one in new.values())

    def write(self) -> None:
        """Write the file anew, in the order of the names."""
        if self.file is not None and self.found:
            write_whole(self.file, "".join(f"{self.found[key].reason}\n" for key in sorted(self.found)).encode())

    def counts(self) -> dict[str, int]:
        """How many each data set has."""
        counts: Counter[str] = Counter()
        for (data, _), one in self.found.items():
            counts[data] += one.count
        return dict(counts)

    def excess(self) -> str | None:
        """What to say where a data set has more than it may; None where none has."""
        for data, count in self.counts().items():
            size = self.sizes.get(data)
            if size is not None and count > math.ceil(round(self.most * size, 6)):
                named = "" if self.file is None else f"; {self.file} names them"
                return (
                    f"{count} of the {size} samples of {data} cannot be used, more than max_bad_share={self.most:g}"
                    f"{named}. Mend them, take them out, or raise max_bad_share"
                )
        return None
