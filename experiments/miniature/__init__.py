"""The paper's table in small: `python -m experiments.miniature`, see README.md in this folder."""
