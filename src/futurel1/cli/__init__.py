"""The command line."""

from futurel1.cli.main import main
from futurel1.cli.trainer import make_cli

__all__ = ["main", "make_cli"]
