"""Results in; RESULTS, Markdown and HTML out."""
