"""Says in one table what configs of earlier versions say otherwise, and what it means today, for run folders and captures; and
choices of groups that had another name, for command lines and recipes."""

from collections.abc import Mapping
from typing import Any

from seer.core.config import filled
from seer.run.config import RunConfig

# (group, argument) -> words that meant what the default says today
VALUES: dict[tuple[str, str], dict[Any, Any]] = {
    ("task", "hard_until"): {"0ep": 0},
    ("task", "queue_from"): {"0ep": 0},
}
# group -> choices by the names that they had
CHOICES: dict[str, dict[str, str]] = {"data": {"pictures": "images"}}
# (group, argument) that the program gives, and that configs used to list as null
GIVEN = (("model", "device"), ("schedule", "total"))
# (group, argument) that configs had, and that changed nothing
IDLE = (("optim", "lr"),)
NOT_OF_A_RUN = ("replay",)  # words of the verb that stood in its config


def choice_today(group: str, choice: str) -> str:
    """Returns the name that a choice of a group has today."""
    return CHOICES.get(group, {}).get(choice, choice)


def renewed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an earlier config in today's words, with every key that today's has."""
    nodes = {name: dict(node) if isinstance(node, Mapping) else node for name, node in config.items()}
    new = {name: node for name, node in nodes.items() if name not in NOT_OF_A_RUN}
    for group, argument in GIVEN:
        if isinstance(node := new.get(group), dict) and node.get(argument, "") is None:
            del node[argument]
    for group, argument in IDLE:
        if isinstance(node := new.get(group), dict):
            node.pop(argument, None)
    for (group, argument), values in VALUES.items():
        if isinstance(node := new.get(group), dict) and node.get(argument) in values:
            node[argument] = values[node[argument]]
    return filled(new, RunConfig)
