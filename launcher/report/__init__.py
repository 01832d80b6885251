"""Results in; RESULTS, Markdown, HTML and SVG out."""
