"""Keeps MultiCrop where configs of earlier versions find it, and those of today, so that a run folder means the
same in both."""

from seer.data.transforms.multi_crop import Draw, MultiCrop, resize

__all__ = ["Draw", "MultiCrop", "resize"]
