"""Samples as training takes them: a record with its caption and its seed, and batches of tensors."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from arimage.data.records import EncodedRecord, Record
from arimage.errors import DataError
from arimage.training.bad_samples import BadSample

Collate = Callable[[list["Example"]], dict[str, Any]]


@dataclass(frozen=True)
class Example:
    """A record, the caption that was chosen for it, and the seed of its noise and dropouts."""

    record: Record | EncodedRecord
    caption: str
    seed: int

    @property
    def pictured(self) -> Record:
        """The record with its pictures.

        Raises:
            DataError: it comes from a prepared cache, which holds none.
        """
        if isinstance(self.record, EncodedRecord):
            raise DataError("this needs pictures, and a prepared cache holds none; name the data itself")
        return self.record


@dataclass
class Batch:
    """What :class:`StepBatches` gives: the objective's tensors, and the samples that could not be read."""

    tensors: dict[str, Any]
    bad: list[BadSample]
