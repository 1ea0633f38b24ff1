"""Measures what a step costs: images per second, time spent waiting for data, memory."""

import resource
import time

import torch


class StepTimer:
    """Times steps: call `waited` when the batch has come, `stepped` when the step is issued, `mark` before what
    follows: another batch, or what is to be left out up to `skip`. `read` gives the means since the last.

    On a GPU a step is issued long before it is done. Over the steps between two reads the means are right all the same, as
    long as the device is waited for before each `read`, and before a `mark` that a `skip` follows.
    """

    def __init__(self, device: torch.device, batch: int):
        self.device, self.batch = device, batch
        self._steps, self._wait = 0, 0.0
        self._start = self._last = time.perf_counter()

    def waited(self) -> None:
        now = time.perf_counter()
        self._wait += now - self._last

    def stepped(self) -> None:
        self.mark()
        self._steps += 1

    def mark(self) -> None:
        self._last = time.perf_counter()

    def skip(self) -> None:
        """Leaves out what has been since the last `mark`, which was not training: an evaluation, a checkpoint."""
        now = time.perf_counter()
        self._start += now - self._last
        self._last = now

    def read(self) -> dict[str, float]:
        """Returns images_per_s over all ranks, data_wait as a share of time, step_ms, peak_memory_gb of this rank."""
        now = time.perf_counter()
        seconds = max(now - self._start, 1e-9)
        values = {
            "images_per_s": self._steps * self.batch / seconds,
            "data_wait": self._wait / seconds,
            "step_ms": 1e3 * seconds / max(self._steps, 1),
            "peak_memory_gb": peak_memory_gb(self.device),
        }
        self._steps, self._wait, self._start, self._last = 0, 0.0, now, now
        return values


def peak_memory_gb(device: torch.device) -> float:
    """Returns GB at the worst moment so far: of the GPU, or resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
