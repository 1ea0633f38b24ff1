"""Writes durations and rates as people read them."""


def duration(seconds: float) -> str:
    """Returns `42 s`, `3 min 5 s`, `3 h 27 min` or `2 d 4 h`: two units at the most."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    minutes = round(whole / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours = round(minutes / 60)
    if hours < 24 or minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"
    return f"{hours // 24} d {hours % 24} h" if hours % 24 else f"{hours // 24} d"


def rate(images_per_s: float) -> str:
    """Returns `812 images/s`, `4.2 images/s`; below one the time of an image, `12.5 s/image`."""
    if images_per_s >= 9.95:
        return f"{images_per_s:,.0f} images/s"
    if images_per_s >= 1:
        return f"{images_per_s:.1f} images/s"
    return f"{1 / images_per_s:,.1f} s/image" if images_per_s > 0 else "0 images/s"
