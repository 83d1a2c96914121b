"""Plans of runs: memory and time, predicted by running their code on shapes."""

from futurel1.planning.plan import Plan, plan

__all__ = ["Plan", "plan"]
