"""Names the evaluations, and what images each needs. Imports nothing heavy: words are checked before torch is imported."""

from typing import Any

# what a run may measure while it trains (`probe=[knn,linear]`), by the names of configs/eval
PROBES: dict[str, str] = {
    "knn": "seer.evals.knn.KNN",
    "linear": "seer.evals.linear.Linear",
    "lowshot": "seer.evals.lowshot.LowShot",
    "rankme": "seer.evals.rankme.RankMe",
    "uniformity": "seer.evals.uniformity.Uniformity",
    "alignment": "seer.evals.uniformity.Alignment",
    "head": "seer.evals.heads.Heads",
}
# the images that an evaluation needs, where these are not both
IMAGES_OF: dict[str, tuple[str, ...]] = {
    "seer.evals.rankme.RankMe": ("train",),
    "seer.evals.uniformity.Uniformity": ("train",),
    "seer.evals.uniformity.Alignment": ("train",),
    "seer.evals.heads.Heads": ("test",),
}


def images_of(node: Any) -> tuple[str, ...]:
    """Returns which images an evaluation needs, of train and test; one that needs train alone takes images without labels, one
    that needs test alone judges heads."""
    return IMAGES_OF.get(node.get("_target_", ""), ("train", "test")) if isinstance(node, dict) else ("train", "test")
