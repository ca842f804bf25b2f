"""Images with a label column from Hugging Face ``datasets`` as an image set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cl_lora.benchmarks.sources.hub import (
    Hosted,
    ImageTable,
    column_names,
    datasets_library,
    encoded_images,
    read_table,
    table_source,
)
from cl_lora.benchmarks.sources.image_sets import (
    ImageSet,
    SetRequest,
    register_image_set,
    split_set,
)
from cl_lora.configuration.build import build


@dataclass(frozen=True, kw_only=True)
class HubSetOptions(Hosted):
    """What the image set ``hub`` can be told; see ``Hosted`` for the rest.

    Attributes:
        test_split: which split to test on; None holds out a share of each class.
    """

    test_split: str | None = None


@register_image_set("hub", summary="a data set of Hugging Face datasets: options={path: NAME}")
def hub_set(request: SetRequest) -> ImageSet:
    """Read the labels of a data set; it is downloaded if it is not there.

    Raises:
        UserError: an option is wrong, or the data set cannot be read.
    """
    options = build(HubSetOptions, request.options, "benchmark.options")
    columns = (options.image_column, options.label_column)
    sides = [options.split, *([options.test_split] if options.test_split is not None else [])]
    tables = [read_table(options, columns, side) for side in sides]
    named = [column_names(table, options.label_column) for table in tables]
    labels = [name for _, found in named for name in found]
    known = dict.fromkeys(name for names, _ in named for name in names)
    present = set(labels)
    classes = tuple(name for name in known if name in present)
    number_of = {name: number for number, name in enumerate(classes)}
    images = datasets_library().concatenate_datasets([encoded_images(options, t) for t in tables])
    side_of = np.repeat(np.arange(len(sides)), [len(found) for _, found in named])
    table = ImageTable(
        images,
        options.image_column,
        classes,
        tuple(sides),
        np.array([number_of[name] for name in labels], dtype=np.int64),
        side_of.astype(np.int64),
    )
    given = None
    if options.test_split is not None:
        given = (np.flatnonzero(side_of == 0), np.flatnonzero(side_of == 1))
    return ImageSet(
        request.name,
        classes,
        table.labels,
        split_set(request, table.labels, classes, given),
        lambda _: table_source(table),
    )
