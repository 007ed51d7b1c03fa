"""The teacher's logits, remembered by sample and view: KD sees each stored image in one of few views, so that
most of what a frozen teacher is asked has been asked before."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from datafree.data.augment import Augment
from datafree.errors import UserError
from datafree.repository import SampleRepository
from datafree.synthesis.base import OnStep, ignore_step

# Images drawn ahead, of which those not seen before go through the teacher first: as many as this, or fewer
# where their logits would be more numbers than this.
DRAWS, NUMBERS = 2**16, 2**24
# Half precision included. Above this, what a network answers depends on which images are asked with it.
LARGEST_DIFFERENCE = 0.05
ROUNDED = (
    "--reuse_teacher: this teacher's answer to an image is rounded by its place in a batch, so that results "
    "are those of another rounding, and a resumed run's too; on a CPU a --batch_size that 32 divides may help"
)


class TeacherCache:
    """A table of the teacher's logits, float32, with a row for a sample and a cell for each of its views.

    The teacher is asked in batches of one size. On a CPU the answer of most teachers to an image is then the
    same to the bit, whatever else is in the batch and wherever the image is in it: `exact` tells. The table
    then changes no result, and no checkpoint needs it.

    Samples have rows as long as there is room, the oldest first; rows of those that were removed are used
    again. Of the others the teacher is asked each time.

    Args:
        teach: gives the teacher's logits (N, classes) on images (N, C, H, W) as the networks see them.
        augment: has the views.
        image_shape: (C, H, W).
        classes: of the teacher.
        batch_size: of KD, in this process.
        size: of the table, in bytes.
        device: where the networks are.

    Raises:
        UserError: images of this shape have no finite set of views, the table has no room for one of them or
            does not fit into memory, or what the teacher answers depends on the rest of the batch.
    """

    def __init__(
        self,
        teach: Callable[[Tensor], Tensor],
        augment: Augment,
        image_shape: tuple[int, int, int],
        classes: int,
        batch_size: int,
        size: int,
        device: torch.device,
    ):
        self.teach, self.augment, self.batch_size, self.device = teach, augment, batch_size, device
        views = augment.views(image_shape)
        if views is None:
            raise UserError(
                f"--reuse_teacher: {type(augment).__name__} has no finite set of views of images of "
                f"{image_shape[1]} pixels, so that none comes twice: leave it out"
            )
        self.views, row = views, views * (4 * classes + 1)  # bytes: logits, and whether they are known
        self.rows = size // row
        if not self.rows:
            raise UserError(f"--reuse_teacher {size}: one sample takes {row:,} bytes: give it more")
        try:
            self._logits = torch.empty(self.rows * views, classes, device=device)
            self._known = torch.zeros(self.rows * views, dtype=torch.bool, device=device)
        except RuntimeError as error:
            raise UserError(f"--reuse_teacher {size}: there is not so much memory: give it less") from error
        self._zero = torch.zeros((), device=device)
        self._serials = torch.full((self.rows,), -1, device=device)
        self.exact = self._same_everywhere(image_shape)

    def clear(self) -> None:
        """Forget everything: the samples are others from here on."""
        self._serials.fill_(-1)

    def batches(
        self,
        repository: SampleRepository,
        steps: int,
        generator: torch.Generator,
        on_step: OnStep = ignore_step,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """What `augment` makes of `repository.batches(batch_size, steps, generator)`, with the teacher's
        logits: everything random is drawn in the same order. `on_step` is called after each batch that goes
        through the teacher, with the phase "teacher" and 0.

        Raises:
            ValueError: the repository is empty.
        """
        own = repository.own()
        rows = torch.full((len(repository),), -1, device=self.device)
        rows[own] = self._rows_of(repository.serials[own])
        draws = repository.draws(self.batch_size, steps, generator)
        ahead = max(1, min(DRAWS, NUMBERS // self._logits.shape[1]) // self.batch_size)
        for first in range(0, steps, ahead):
            drawn = [
                (next(draws), self.augment.draw_views(self.batch_size, generator))
                for _ in range(first, min(steps, first + ahead))
            ]
            samples, views = map(torch.cat, zip(*drawn, strict=True))
            answers = self._answers(repository, samples, views, rows, on_step)
            for step, known in zip(drawn, answers.split(self.batch_size), strict=True):
                yield self._see(repository, *step), known

    def _rows_of(self, serials: Tensor) -> Tensor:
        """The row of each sample, -1 where there is none. Samples that have none take what is free, the
        oldest first.

        Args:
            serials: (N,) int64, rising, of the samples there are.
        """
        at = torch.searchsorted(serials, self._serials).clamp(max=max(0, len(serials) - 1))
        held = (
            serials[at] == self._serials
            if len(serials)
            else torch.zeros_like(self._serials, dtype=torch.bool)
        )
        rows = torch.full_like(serials, -1)
        rows[at[held]] = held.nonzero().squeeze(1)
        new, free = (rows < 0).nonzero().squeeze(1), (~held).nonzero().squeeze(1)
        count = min(len(new), len(free))
        new, taken = new[:count], free[:count]
        rows[new] = taken
        self._serials[free] = -1
        self._serials[taken] = serials[new]
        self._known.view(self.rows, self.views)[taken] = False
        return rows

    def _answers(
        self, repository: SampleRepository, samples: Tensor, views: Tensor, rows: Tensor, on_step: OnStep
    ) -> Tensor:
        """The teacher's logits (N, classes) on samples, which are places in the stored order, in views."""
        cells = torch.where(rows[samples] < 0, -1, rows[samples] * self.views + views)
        known = (cells >= 0) & self._known[cells.clamp(min=0)]
        answers = self._logits[cells.clamp(min=0)]
        asked, which = torch.unique((samples * self.views + views)[~known], return_inverse=True)
        if not len(asked):
            return answers
        new = self._ask(repository, asked, on_step)
        answers[~known] = new[which]
        rows_asked = rows[asked // self.views]
        kept = rows_asked >= 0
        cells = (rows_asked * self.views + asked % self.views)[kept]
        self._logits[cells] = new[kept]
        self._known[cells] = True
        return answers

    def _ask(self, repository: SampleRepository, asked: Tensor, on_step: OnStep) -> Tensor:
        """The teacher's logits on samples in views, place * views + view, in batches of one size."""
        answers = []
        for part in asked.split(self.batch_size):
            whole = torch.cat([part, part[:1].expand(self.batch_size - len(part))])
            answers.append(
                self.teach(self._see(repository, whole // self.views, whole % self.views))[: len(part)]
            )
            on_step("teacher", self._zero)
        return torch.cat(answers)

    def _see(self, repository: SampleRepository, samples: Tensor, views: Tensor) -> Tensor:
        return self.augment.view(repository.drawn(samples), views)

    def _same_everywhere(self, image_shape: tuple[int, int, int]) -> bool:
        """Whether the teacher's answer to an image is the same to the bit wherever it is in a batch.

        Raises:
            UserError: the answer depends on which other images are in the batch.
        """
        rng, size = torch.Generator(self.device).manual_seed(0), self.batch_size
        images = torch.randint(
            256, (2 * size, *image_shape), generator=rng, device=self.device, dtype=torch.uint8
        )
        seen = self.augment.view(images, self.augment.draw_views(len(images), rng))
        first, exact = self.teach(seen[:size]), True
        for shift in {1, max(1, size // 2)} if size > 1 else ():
            again = self.teach(seen[shift : shift + size])[: size - shift]
            difference = (first[shift:] - again).abs().max()
            if not difference <= LARGEST_DIFFERENCE * first.std():  # which NaN is not either
                raise UserError(
                    "--reuse_teacher: what this teacher answers to an image depends on the rest of the "
                    "batch, and cannot be used again: leave it out"
                )
            exact = exact and not difference
        return bool(exact)
