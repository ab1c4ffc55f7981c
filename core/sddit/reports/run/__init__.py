"""The report of a run: headline, scores, charts, settings and suggestions."""
