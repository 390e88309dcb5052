"""The report: one model built from the records alone, rendered as HTML and as Markdown."""
