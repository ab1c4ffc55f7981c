"""Feature extractors for metrics."""
