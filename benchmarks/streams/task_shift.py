"""Task shift: several image sets, each a task; one is held out, or each in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cl_lora.benchmarks.config import benchmark_kind
from cl_lora.benchmarks.core import Benchmark, fingerprint
from cl_lora.benchmarks.images import Pixels
from cl_lora.benchmarks.sources.class_tree import is_split_tree
from cl_lora.benchmarks.sources.image_sets import ImageSet, SetRequest, load_image_set
from cl_lora.benchmarks.sources.settings import PartsConfig, require_names, require_text
from cl_lora.benchmarks.sources.torchvision_sets import PUBLISHED
from cl_lora.benchmarks.sources.tree import folder_names, require_folder
from cl_lora.benchmarks.streams.groups import Group, group_experience
from cl_lora.benchmarks.streams.held_out import held_out, stream_order
from cl_lora.configuration.build import required
from cl_lora.support.errors import UserError, unknown_name
from cl_lora.support.files import digest


def stream_of_sets(
    name: str,
    sets: Sequence[ImageSet],
    decoded: Sequence[tuple[Pixels, str]],
    *,
    downstream: bool = True,
) -> Benchmark:
    """Return image sets as a stream, each with its own inputs and its own task.

    Args:
        name: of the benchmark.
        sets: the upstream ones, then the downstream one.
        decoded: for each set its images (N_i, ...) and a digest of them.
        downstream: whether the last one is held out; False for a run that holds out each in turn.

    Raises:
        UserError: no upstream set, or one without train or test samples.
    """
    contents = [
        fingerprint(
            content,
            classes=images.classes,
            domains=[images.name],
            labels=images.labels,
            splits=[images.parts],
        )
        for images, (_, content) in zip(sets, decoded, strict=True)
    ]
    return held_out(
        name,
        [
            group_experience(images, inputs, Group(images.name, tuple(range(len(images.classes)))))
            for images, (inputs, _) in zip(sets, decoded, strict=True)
        ],
        digest(contents),
        downstream=downstream,
    )


@benchmark_kind("task_shift")
@dataclass(frozen=True, kw_only=True)
class TaskShiftConfig(PartsConfig):
    """Several image sets below one folder (Asadi et al. 2024, part task shift).

    A set is a folder ``root/NAME/{train,test}/class``, or the name of one of torchvision's classes
    whose data lies below ``root`` as torchvision lays it out. A folder comes first.

    Attributes:
        root: the folder of all sets.
        sets: names, in stream order; None for all folders of that form, sorted.
        upstream: the sets that adapters are trained on; None for all others.
        downstream: the set that is held out; None for a run that holds out each in turn.
        download: whether torchvision's data that is not there may be downloaded.
    """

    name: str = "task_shift"
    root: str = required("the folder that holds the data sets", "DIR")
    sets: tuple[str, ...] | None = None
    upstream: tuple[str, ...] | None = None
    downstream: str | None = None
    download: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_text("root", self.root)
        require_names("sets", self.sets)
        require_names("upstream", self.upstream)
        require_text("downstream", self.downstream)

    def check(self) -> None:
        """Find and list every set; decode nothing."""
        self._listed(self.download)

    def found(self) -> str | None:
        """Say which sets there are, or None if there is no such folder; download nothing."""
        root = Path(self.root).expanduser()
        if not root.is_dir():
            return None
        sets = self._listed(download=False)
        return f"{root}: {', '.join(f'{s.name} ({len(s.labels)} images)' for s in sets)}"

    def build(self, image_size: int) -> Benchmark:
        """Load the benchmark, decoding the images of each set if no earlier run has."""
        sets = self._listed(self.download)
        decoded = [images.decode(image_size, self.cache_dir) for images in sets]
        return stream_of_sets(self.name, sets, decoded, downstream=self.downstream is not None)

    def _listed(self, download: bool) -> list[ImageSet]:
        root = _root(self.root, download)
        names = self.sets or _trees(root)
        if len(names) < 2:
            raise UserError(
                f"Expected at least two sets in {root}, folders of train/class and test/class, but "
                f"got {', '.join(names) or 'none'}; give benchmark.sets=[NAME,...] or the right "
                "benchmark.root=DIR"
            )
        order = stream_order(names, self.upstream, self.downstream)
        return [self._one(root, name, download) for name in order]

    def _one(self, root: Path, name: str, download: bool) -> ImageSet:
        if is_split_tree(root / name):
            return load_image_set("tree", SetRequest(name, self.splitting, str(root / name)))
        if name in PUBLISHED:
            return load_image_set(name, SetRequest(name, self.splitting, str(root), download))
        known = (*_trees(root), *PUBLISHED)
        if (root / name).is_dir():
            raise UserError(
                f"Expected {root / name} to hold train/class and test/class but it does not; "
                "complete it or choose other benchmark.sets"
            )
        raise unknown_name(f"image set of {root}", name, known)


def _root(given: str, download: bool) -> Path:
    """Return the folder of all sets; one that data is downloaded into need not be there."""
    return Path(given).expanduser() if download else require_folder(given)


def _trees(root: Path) -> tuple[str, ...]:
    names = folder_names(root) if root.is_dir() else []
    return tuple(name for name in names if is_split_tree(root / name))
