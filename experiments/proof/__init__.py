"""The paper's table in small, a page for each plan: `python -m experiments.proof`, see README.md in this folder."""
