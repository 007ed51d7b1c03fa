"""A cache of the teacher's logits by sample and view: the student sees each stored image in one of few views,
so that most of its questions to a frozen teacher have been answered before."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from datafree.data.augment import Augment
from datafree.errors import UserError
from datafree.repository import SampleRepository
from datafree.samples import Batch
from datafree.synthesis.base import OnStep, ignore_step

# Images drawn ahead, of which those not seen before go through the teacher first: as many as this, or fewer
# where their logits would be more numbers than this.
DRAWS, NUMBERS = 2**16, 2**24
# Half precision included. Above this, a network's output for an image depends on the rest of the batch.
LARGEST_DIFFERENCE = 0.05
INEXACT = (
    "--reuse_teacher: this teacher's logits depend slightly on an image's position in the batch, so results "
    "are not bit-identical to those without the flag, nor those of a resumed run; on a CPU a --batch_size "
    "that is a multiple of 32 may help"
)


class TeacherCache:
    """Batches of stored samples with the teacher's logits, which are kept in a table, float32, with a row for
    each sample and a cell for each of its views. Samples get rows as long as there is room, the oldest first;
    rows of removed samples are used again. For the others the teacher is called each time.

    The teacher is called with batches of one size. On a CPU the logits of most teachers for an image are then
    bit-identical, wherever it is in whatever batch. The cache then changes no result, and no checkpoint needs
    it; if not, `inexact` is a line that reports it.

    Args:
        repository: of the samples.
        teach: maps images (N, C, H, W) as the networks see them to the teacher's logits (N, classes).
        augment: has the views.
        classes: of the teacher.
        batch_size: of KD, in this process.
        steps: batches of a round.
        size: of the table, in bytes.
        generator: source of the draws.

    Raises:
        UserError: images of this shape have no finite set of views, the table has no room for one of them or
            does not fit into memory, or the teacher's logits depend on the rest of the batch.
    """

    def __init__(
        self,
        repository: SampleRepository,
        teach: Callable[[Tensor], Tensor],
        augment: Augment,
        classes: int,
        batch_size: int,
        steps: int,
        size: int,
        generator: torch.Generator,
    ):
        self.repository, self.teach, self.augment = repository, teach, augment
        self.batch_size, self.steps, self.generator = batch_size, steps, generator
        device, image_shape = repository.device, repository.image_shape
        views = augment.views(image_shape)
        if views is None:
            raise UserError(
                f"--reuse_teacher: {type(augment).__name__} has no finite set of views of images of "
                f"{image_shape[1]} pixels: leave it out"
            )
        self.views, row = views, views * (4 * classes + 1)  # bytes: logits, and whether they are known
        self.rows = size // row
        if not self.rows:
            raise UserError(f"--reuse_teacher {size}: one sample takes {row:,} bytes: give it more")
        try:
            self._logits = torch.empty(self.rows * views, classes, device=device)
            self._known = torch.zeros(self.rows * views, dtype=torch.bool, device=device)
        except RuntimeError as error:
            raise UserError(f"--reuse_teacher {size}: there is not enough memory: give it less") from error
        self._zero = torch.zeros((), device=device)
        self._serials = torch.full((self.rows,), -1, device=device)
        self._loads = repository.loads
        self.inexact = "" if self._same_everywhere(image_shape) else INEXACT

    def batches(self, on_step: OnStep = ignore_step) -> Iterator[Batch]:
        """The batches of `student.stored_batches` with the teacher's logits: all random numbers are drawn in
        the same order. `on_step` is called after each batch that goes through the teacher, with the phase
        "teacher" and 0.

        Raises:
            ValueError: the repository is empty.
        """
        repository, steps, generator = self.repository, self.steps, self.generator
        if self._loads != repository.loads:  # its serials are of other samples now
            self._serials.fill_(-1)
            self._loads = repository.loads
        own = repository.own()
        rows = torch.full((len(repository),), -1, device=repository.device)
        rows[own] = self._rows_of(repository.serials[own])
        draws = repository.draws(self.batch_size, steps, generator)
        ahead = max(1, min(DRAWS, NUMBERS // self._logits.shape[1]) // self.batch_size)
        for first in range(0, steps, ahead):
            drawn = [
                (next(draws), self.augment.draw_views(self.batch_size, generator))
                for _ in range(first, min(steps, first + ahead))
            ]
            samples, views = map(torch.cat, zip(*drawn, strict=True))
            answers = self._answers(samples, views, rows, on_step)
            for step, known in zip(drawn, answers.split(self.batch_size), strict=True):
                yield Batch(self._see(*step), known)

    def _rows_of(self, serials: Tensor) -> Tensor:
        """The row of each sample, -1 where there is none, by their serials, (N,) int64, rising. Samples that
        have none take what is free, the oldest first."""
        held = torch.isin(self._serials, serials)
        rows = torch.full_like(serials, -1)
        rows[torch.searchsorted(serials, self._serials[held])] = held.nonzero().squeeze(1)
        new, free = (rows < 0).nonzero().squeeze(1), (~held).nonzero().squeeze(1)
        count = min(len(new), len(free))
        new, taken = new[:count], free[:count]
        rows[new] = taken
        self._serials[free] = -1
        self._serials[taken] = serials[new]
        self._known.view(self.rows, self.views)[taken] = False
        return rows

    def _answers(self, samples: Tensor, views: Tensor, rows: Tensor, on_step: OnStep) -> Tensor:
        """The teacher's logits (N, classes) on samples, which are places in the stored order, in views."""
        cells = torch.where(rows[samples] < 0, -1, rows[samples] * self.views + views)
        known = (cells >= 0) & self._known[cells.clamp(min=0)]
        answers = self._logits[cells.clamp(min=0)]
        asked, which = torch.unique((samples * self.views + views)[~known], return_inverse=True)
        if not len(asked):
            return answers
        parts = []
        for part in asked.split(self.batch_size):
            whole = torch.cat([part, part[:1].expand(self.batch_size - len(part))])  # batches of one size
            logits = self.teach(self._see(whole // self.views, whole % self.views))
            parts.append(logits[: len(part)])
            on_step("teacher", self._zero)
        new = torch.cat(parts)
        answers[~known] = new[which]
        rows_asked = rows[asked // self.views]
        kept = rows_asked >= 0
        cells = (rows_asked * self.views + asked % self.views)[kept]
        self._logits[cells] = new[kept]
        self._known[cells] = True
        return answers

    def _see(self, samples: Tensor, views: Tensor) -> Tensor:
        return self.augment.view(self.repository.drawn(samples), views)

    def _same_everywhere(self, image_shape: tuple[int, int, int]) -> bool:
        """Whether the teacher's logits for an image are the same to the bit wherever it is in a batch.

        Raises:
            UserError: they depend on which other images are in the batch.
        """
        device, size = self.repository.device, self.batch_size
        rng, shape = torch.Generator(device).manual_seed(0), (2 * size, *image_shape)
        images = torch.randint(256, shape, generator=rng, device=device, dtype=torch.uint8)
        seen = self.augment.view(images, self.augment.draw_views(len(images), rng))
        first, exact = self.teach(seen[:size]), True
        for shift in {1, max(1, size // 2)} if size > 1 else ():
            again = self.teach(seen[shift : shift + size])[: size - shift]
            difference = (first[shift:] - again).abs().max()
            if not difference <= LARGEST_DIFFERENCE * first.std():  # which NaN is not either
                raise UserError(
                    "--reuse_teacher: this teacher's logits for an image depend on the rest of the batch, so "
                    "they cannot be reused: leave it out"
                )
            exact = exact and not difference
        return bool(exact)
