"""A config as plain dicts, lists and values."""

from typing import Any


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"a.b": value}; lists are leaves."""
    if not isinstance(config, dict):
        return {prefix: config}
    return {
        k: v for name, value in config.items() for k, v in flat(value, f"{prefix}.{name}" if prefix else name).items()
    }
