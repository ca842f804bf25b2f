"""Which scores there are: the rows and columns of R, and what a stage evaluates."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """The shape of the scores of one metric, R (S, T).

    Attributes:
        stages: S, the number of stages after training.
        experiences: T, the number of experiences.
        ordered: whether stages follow one another in time.
        evaluated: for each stage the experiences that it scores by this metric; all, if not given.
    """

    stages: int
    experiences: int
    ordered: bool = True
    evaluated: tuple[tuple[int, ...], ...] | None = None

    def __post_init__(self) -> None:
        if self.stages < 1 or self.experiences < 1:
            raise ValueError(
                f"Expected at least one stage and experience but got {self.stages} and "
                f"{self.experiences}"
            )
        if self.evaluated is not None and len(self.evaluated) != self.stages:
            raise ValueError(
                f"Expected what {self.stages} stages evaluate but got {len(self.evaluated)}"
            )

    @property
    def final(self) -> tuple[int, ...]:
        """What the last stage scores: the experiences of the average."""
        if self.evaluated is None:
            return tuple(range(self.experiences))
        return self.evaluated[-1]

    @property
    def in_time(self) -> bool:
        """Whether stage t is the one after experience t, as forgetting and transfer need."""
        return self.ordered and self.stages == self.experiences
