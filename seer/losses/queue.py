"""Keeps embeddings of earlier batches, which stand beside the present one in Sinkhorn: balance for batches below K.

Surprising here:

- There is one queue for the whole run, in the order in which the images came, the same on every rank: each batch is
  gathered in rank order, which is the global order of the batch whatever the number of ranks (`data/order.py`). So a
  checkpoint holds it once, and a run that goes on with another number of ranks finds the same queue.
- In Sinkhorn a row must be counted once, so a rank brings only its slice. The slices need not be of one length.
- It is used only when it is full: a row that nobody filled (zeros, or noise, as in the published programs) has equal
  scores everywhere and asks for a share of every prototype.
- How many rows it holds follows from the number of pushes, so nobody waits for the device to tell.

SwAV arXiv 2006.09882, section 4.3: 3,840 images beside a batch of 256, from epoch 15.
Letters: A assign views, B images of this rank, R ranks, L length of the queue, D embedding.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from seer.parallel.collectives import Group, all_gather_stack

__all__ = ["Queue"]


class Queue:
    """Keeps the newest embeddings. length: L images, of which A embeddings each are kept. group: the ranks that
    share it; None for one process.

    Raises ValueError for a length below 1.
    """

    def __init__(self, length: int, group: Group | None = None):
        if length < 1:
            raise ValueError(f"a queue of {length} images keeps nothing; its length is at least 1")
        self.length, self.group = length, group
        self._rows: Tensor | None = None  # [A, up to L, D] float32, oldest first

    @property
    def full(self) -> bool:
        return self._rows is not None and self._rows.shape[1] == self.length

    @torch.no_grad()
    def push(self, embeddings: Tensor) -> None:
        """Appends [A, B, D] of every rank and forgets what is older than L images. One gather."""
        everyone = all_gather_stack(embeddings.detach().float().contiguous(), self.group)  # [R, A, B, D]
        newest = everyone.transpose(0, 1).flatten(1, 2)  # [A, R*B, D]
        rows = newest if self._rows is None else torch.cat([self._rows.to(newest.device), newest], dim=1)
        self._rows = rows[:, -self.length :].clone()  # a copy, so that the part left out is freed

    def local_rows(self, device: torch.device) -> Tensor:
        """Returns the rows that this rank brings to Sinkhorn: [A, L/R, D], float32. Only when the queue is full."""
        assert self._rows is not None and self.full, "the queue is not full yet"
        self._rows = self._rows.to(device)
        rank, ranks = (0, 1) if self.group is None else (self.group.rank(), self.group.size())
        return self._rows[:, rank * self.length // ranks : (rank + 1) * self.length // ranks]

    def state_dict(self) -> dict[str, Tensor]:
        """Returns {} while empty, else {"rows": [A, up to L, D]}: the same on every rank."""
        return {} if self._rows is None else {"rows": self._rows}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Loads a state. Raises ValueError for rows of a longer queue."""
        rows = state.get("rows")
        if rows is not None and rows.shape[1] > self.length:
            raise ValueError(f"the saved queue holds {rows.shape[1]} images, this one {self.length}; use its length")
        self._rows = None if rows is None else rows.clone()
