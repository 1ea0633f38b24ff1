"""Makes every random number of a run from one integer in the config.

A *key* is 64 bits made from the seed and names or integers (`key(seed, "order", epoch)`). Draws are a hash of
(key, counter), so draw number n of a key costs the same as draw number 0, needs no state, and does not depend on who
asks first: workers, ranks and restarts see the same numbers. The mixing function is the finaliser of SplitMix64
(Steele, Lea, Flood 2014), which passes BigCrush when fed a counter.

Surprising: numpy's unsigned integers wrap on overflow, which is what the arithmetic here wants.
"""

import hashlib

import numpy as np
import torch

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)


def mix(x: np.ndarray) -> np.ndarray:
    """Mixes by the SplitMix64 finaliser, a bijection of 64-bit words. uint64 [...] -> uint64 [...]."""
    x = (x ^ (x >> np.uint64(30))) * _M1
    x = (x ^ (x >> np.uint64(27))) * _M2
    return x ^ (x >> np.uint64(31))


def key(seed: int, *parts: int | str) -> int:
    """Returns a 64-bit key for a named stream. Strings enter by their SHA-256, so a new name never moves an old
    stream."""
    value = np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)
    for part in parts:
        word = (
            int.from_bytes(hashlib.sha256(part.encode()).digest()[:8], "little")
            if isinstance(part, str)
            else part & 0xFFFFFFFFFFFFFFFF
        )
        value = mix(value + _GOLDEN) ^ np.uint64(word)
    return int(mix(value + _GOLDEN)[0])


def sub_keys(parent: int | np.ndarray, *columns: np.ndarray) -> np.ndarray:
    """Returns one key for each row of integer columns: `sub_keys(k, epochs, shards, rows)`. int64 [n] each ->
    uint64 [n].

    The parent may be one for each row, too. Row i is `key(parent, columns[0][i], ...)`.
    """
    value: np.ndarray = np.broadcast_to(np.asarray(parent, dtype=np.uint64), len(columns[0])).copy()
    for column in columns:
        value = mix(value + _GOLDEN) ^ column.astype(np.uint64)
    return mix(value + _GOLDEN)


def uniforms(keys: np.ndarray, n: int) -> np.ndarray:
    """Returns the first n draws of each key, uniform in [0, 1) with 53 bits. uint64 [b] -> float64 [b, n]."""
    counters = np.arange(1, n + 1, dtype=np.uint64) * _GOLDEN
    words = mix(keys[:, None] + counters[None, :])
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def torch_generator(seed: int, *parts: int | str) -> torch.Generator:
    """Returns a CPU generator for initializing weights and the like."""
    return torch.Generator().manual_seed(key(seed, *parts) & 0x7FFFFFFFFFFFFFFF)
