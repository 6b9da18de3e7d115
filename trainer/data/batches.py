"""Batches in an order that a seed determines and a checkpoint can save."""

from collections.abc import Sequence
from typing import Any

import grain


def shuffled_batches(
    source: Sequence[Any], *, batch_size: int, seed: int
) -> grain.DatasetIterator[Any]:
    """Returns endless batches, shuffled anew each epoch; the iterator's state is its position."""
    dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat().batch(batch_size)
    reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    return iter(dataset.to_iter_dataset(reading))
