"""Plain batches of an experience."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from benchmark_views import held_out_of, images_of, labels_of, train_of
from toy_tasks import scalars

from cl_lora.benchmarks import Benchmark, make_benchmark
from cl_lora.benchmarks.batches import batches
from cl_lora.models.images import ImageBackbone
from cl_lora.support.errors import UserError


@pytest.fixture
def data(folder_config) -> Benchmark:
    return make_benchmark(folder_config, 8)


@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
def test_batches_cover_the_indices_in_order(data, batch_size):
    indices = train_of(data)[1][::-1].copy()
    images, labels = zip(
        *batches(data.experiences[1], indices, batch_size, ImageBackbone.encode), strict=True
    )
    assert all(len(batch) == batch_size for batch in images[:-1])
    together = torch.cat(images)
    assert together.dtype == torch.uint8
    np.testing.assert_array_equal(together.permute(0, 2, 3, 1).numpy(), images_of(data)[indices])
    assert torch.cat(labels).dtype == torch.int64
    np.testing.assert_array_equal(torch.cat(labels).numpy(), labels_of(data)[indices])


def test_batches_can_be_written_to_without_touching_the_cache(data):
    before = images_of(data)[held_out_of(data)[0][0]].copy()
    images, _ = next(batches(data.experiences[0], held_out_of(data)[0], 2, ImageBackbone.encode))
    images.zero_()
    np.testing.assert_array_equal(images_of(data)[held_out_of(data)[0][0]], before)


def test_batch_size_must_be_positive(data):
    with pytest.raises(UserError, match="at least 1 but got 0"):
        next(batches(data.experiences[0], held_out_of(data)[0], 0, ImageBackbone.encode))


def test_targets_have_the_dtype_of_their_kind_and_inputs_are_what_encode_makes():
    one = scalars().experiences[1]
    inputs, targets = next(batches(one, one.test, 10, lambda samples: torch.tensor(samples.shape)))
    assert inputs.tolist() == [4, 2, 2, 3]
    assert targets.dtype == torch.float32
    np.testing.assert_array_equal(targets.numpy(), one.targets[one.test].astype(np.float32))
