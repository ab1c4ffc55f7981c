"""Reports as HTML and Markdown: charts, pages and templates. Numbers come from `evaluation` and `ablations`."""
