"""Import, export and convert weights between runs and published layouts."""
