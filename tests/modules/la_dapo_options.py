"""Short tables of LA-DAPO settings for tests: flat names, which :func:`nested` puts where they belong."""

from dataclasses import fields
from typing import Any

from futurel1.losses import PolicyLoss
from futurel1.rollout import RolloutSettings, SamplingSettings

GROUPS = {"rollout": RolloutSettings, "sampling": SamplingSettings, "objective": PolicyLoss}


def nested(options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Constructor arguments: `{"num_rollouts": 4, "backbone": "tiny"}` has its first entry under `rollout`."""
    homes = {field.name: group for group, kind in GROUPS.items() for field in fields(kind)}
    made: dict[str, Any] = {}
    for name, value in options.items():
        place = made.setdefault(homes[name], {}) if name in homes else made
        place[name] = value
    return made
