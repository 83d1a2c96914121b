"""A small replica of the paper's table: `python -m experiments.miniature`, see README.md in this folder."""
