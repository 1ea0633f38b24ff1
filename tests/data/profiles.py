"""ICC profiles written byte by byte from the standard (ICC.1:2001-04), for pixels of several kinds."""

import struct

import numpy as np

D50 = (0.9642, 1.0, 0.8249)
D65 = (0.3127, 0.3290)
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
ADOBE = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


# parametric curves from black to white of ICC.1:2004-10, section 10.15, table 65: numbers by the kind of function
PARAMETRIC = {
    0: (1.8,),
    1: (2.2, 1.05, -0.05),
    2: (2.4, 1.04, -0.04, 0.0),
    3: (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045),
    4: (2.2, 0.9, 0.99 ** (1 / 2.2) - 0.9, 0.1, 0.06, 0.01, 0.0),
}
PALE = (2.4, 0.8, 0.15, 0.05)  # of kind 2, whose black is no black


def rgb(
    primaries: tuple[tuple[float, float], ...], gamma: float | bytes | None, name: str = "made here", **tags: bytes
) -> bytes:
    """A profile of primaries (x, y) over D65. gamma: of its curve; None for that of sRGB, in 1024 steps; or a curve as written.
    tags: more of them."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    white = np.array([D65[0] / D65[1], 1, (1 - sum(D65)) / D65[1]])
    columns = columns * np.linalg.solve(columns, white)
    scale = (_BRADFORD @ np.array(D50)) / (_BRADFORD @ white)
    columns = np.linalg.inv(_BRADFORD) @ np.diag(scale) @ _BRADFORD @ columns
    tags |= {f"{c}XYZ": _xyz(columns[:, i]) for i, c in enumerate("rgb")}
    tags |= {f"{c}TRC": gamma if isinstance(gamma, bytes) else _curve(gamma) for c in "rgb"}
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags, name)


def parametric(kind: int, numbers: tuple[float, ...]) -> bytes:
    return b"para" + bytes(4) + struct.pack(">HH", kind, 0) + b"".join(map(_fixed, numbers))


def table() -> bytes:
    """A table from pixels of RGB to Lab that nobody would take for its profile's matrix: all colors become grays."""
    corners = np.array([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)])
    lab = np.stack([255 * corners.mean(1), np.full(8, 128), np.full(8, 128)], axis=1)
    lut = b"mft1" + bytes(4) + bytes([3, 3, 2, 0]) + struct.pack(">9i", *(np.eye(3).ravel() * 65536).astype(int))
    return lut + bytes(range(256)) * 3 + lab.round().astype(np.uint8).tobytes() + bytes(range(256)) * 3


def gray(gamma: float) -> bytes:
    return _profile(b"mntr", b"GRAY", b"XYZ ", {"kTRC": _curve(gamma)}, "gray")


def cmyk() -> bytes:
    """Inks of a press that nobody has: Lab at the corners of their cube."""
    corners = np.array([[(i >> s) & 1 for s in (3, 2, 1, 0)] for i in range(16)])
    light = 100 * (1 - corners[:, 3]) * (1 - 0.3 * corners[:, :3].mean(1))
    lab = np.stack(
        [
            light * 2.55,
            128 + 40 * (corners[:, 1] - corners[:, 0]) * (1 - corners[:, 3]),
            128 + 50 * (corners[:, 2] - corners[:, 1]) * (1 - corners[:, 3]),
        ],
        axis=1,
    )
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0])
    lut += struct.pack(">9i", *(np.eye(3).ravel() * 65536).astype(int))
    lut += bytes(range(256)) * 4 + lab.round().clip(0, 255).astype(np.uint8).tobytes() + bytes(range(256)) * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {"A2B0": lut}, "press")


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _xyz(values: np.ndarray | tuple[float, ...]) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(_fixed(v) for v in values)


def _curve(gamma: float | None) -> bytes:
    if gamma is not None:
        return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    x = np.linspace(0, 1, 1024)
    y = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    return b"curv" + bytes(4) + struct.pack(">I", 1024) + (y * 65535).round().astype(">u2").tobytes()


def _profile(kind: bytes, space: bytes, pcs: bytes, tags: dict[str, bytes], name: str) -> bytes:
    text = name.encode() + b"\0"
    described = b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(4 + 4 + 2 + 1 + 67)
    tags = {"desc": described, "cprt": b"text" + bytes(4) + b"none\0", "wtpt": _xyz(D50), **tags}
    table, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for sign, data in tags.items():
        table += sign.encode() + struct.pack(">II", at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I", at + len(body)) + bytes(4) + b"\x02\x40\0\0" + kind + space + pcs
    head += struct.pack(">6H", 2026, 11, 27, 0, 0, 0) + b"acsp" + bytes(28) + b"".join(map(_fixed, D50))
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body
