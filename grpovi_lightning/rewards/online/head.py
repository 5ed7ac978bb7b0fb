"""A trained linear reward on disk: the estimator's state, and which features it is for. No code, no pickle."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from grpovi_lightning.errors import UserError
from grpovi_lightning.rewards.online.estimator import PreferenceEstimator

HEAD_FILE, STATE_FILE = "linear_reward.json", "estimator.safetensors"


def save_head(folder: str | Path, features: str, estimator: PreferenceEstimator, mean: float, std: float) -> None:
    """Write a linear reward, as `linear_reward.json` and `estimator.safetensors`: (score - mean) / std.

    The folder is made where it does not exist; `features` is the feature model's fingerprint.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = estimator.state_dict()
    tensors = {name: value.contiguous() for name, value in state.items() if isinstance(value, Tensor)}
    save_file(tensors, folder / STATE_FILE)
    content = identity(features, estimator) | {
        "numbers": {name: value for name, value in state.items() if name not in tensors},
        "reward_mean": mean,
        "reward_std": std,
    }
    (folder / HEAD_FILE).write_text(json.dumps(content, indent=1) + "\n")


def check_head(folder: str | Path) -> None:
    """Raise `UserError` for a folder that holds no linear reward."""
    for name in (HEAD_FILE, STATE_FILE):
        if not (Path(folder) / name).is_file():
            raise UserError(
                f"linear reward {folder}: no {name} there; expected a folder that OnePassRewardModule wrote"
            )


def load_head(folder: str | Path, features: str, estimator: PreferenceEstimator) -> tuple[float, float]:
    """Load the state that `save_head` wrote into an estimator of the same class, for features of this fingerprint.

    Returns:
        Mean and standard deviation of the scores.

    Raises:
        UserError: the folder is damaged, or of other features, another estimator, or other settings of it.
    """
    check_head(folder)
    content = _read(Path(folder) / HEAD_FILE)
    check_identity(content, identity(features, estimator), f"linear reward {folder}")
    try:
        tensors = load_file(Path(folder) / STATE_FILE)
    except SafetensorError as error:
        raise UserError(f"linear reward {folder}: {STATE_FILE} is damaged ({error}); train it again") from error
    estimator.load_state_dict(content["numbers"] | tensors)
    return float(content["reward_mean"]), float(content["reward_std"])


def identity(features: str, estimator: PreferenceEstimator) -> dict[str, Any]:
    """Return what a saved state and its user must agree on: features, class of the estimator, settings of its state."""
    return {"features": features, "estimator": type(estimator).__name__, "settings": estimator.settings}


def check_identity(saved: dict[str, Any], own: dict[str, Any], what: str) -> None:
    """Raise `UserError` where a saved `identity` and that of the features and the estimator in use differ.

    `saved` may have other keys too; `what` says in the message where it is from.
    """
    if saved["features"] != own["features"]:
        raise UserError(
            f"{what}: it belongs to other features; use the feature model and the poolings that it was trained with"
        )
    for name in ("estimator", "settings"):
        if saved[name] != own[name]:
            raise UserError(
                f"{what}: {name}: got {own[name]}, expected {saved[name]}, with which it was trained; use the same, or "
                "train it again"
            )


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error}); train the linear reward again") from error
    expected = {"features", "estimator", "settings", "numbers", "reward_mean", "reward_std"}
    if not isinstance(content, dict) or set(content) != expected:
        raise UserError(f"{file}: expected the keys {', '.join(sorted(expected))}; train the linear reward again")
    return content
