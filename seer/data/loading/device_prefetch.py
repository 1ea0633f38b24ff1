"""Sends batches to a GPU while the last step still runs there."""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TypeVar

import torch

from seer.core.records import Batch, stays_on_host

T = TypeVar("T")


def on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Yields the same batches on the device. On a GPU each is copied by a stream of its own, one step ahead.

    A batch on the host is held until its copy is done, since its memory will be written again.
    """
    with closing(batches):  # type: ignore[type-var]
        if device.type != "cuda":
            for batch in batches:
                yield batch.to(device)
            return
        stream = torch.cuda.Stream(device)

        def send() -> tuple[Batch, Batch, torch.cuda.Event] | None:
            host = next(batches, None)
            if host is None:
                return None
            with torch.cuda.stream(stream):
                sent = host.to(device, non_blocking=True)
            return host, sent, stream.record_event()

        for host, batch, arrived in one_ahead(send):
            now = torch.cuda.current_stream(device)
            now.wait_event(arrived)
            for name, tensor in batch.fields.items():
                if not stays_on_host(name):
                    tensor.record_stream(now)
            arrived.synchronize()  # it began a step ago, so it is done
            del host
            yield batch


def one_ahead(get: Callable[[], T | None]) -> Iterator[T]:
    """Yields what get() gives until it gives None, each asked for before the one ahead of it is used; what it
    raises comes in its turn, since what is ahead may never be used."""
    coming = _outcome(get)
    while (now := coming) is not None:
        if isinstance(now, Exception):
            raise now
        coming, ready = _outcome(get), [now]
        del now  # whoever gets it may let it go before the next is asked for
        yield ready.pop()


def _outcome(get: Callable[[], T | None]) -> T | Exception | None:
    try:
        return get()
    except Exception as error:
        return error
