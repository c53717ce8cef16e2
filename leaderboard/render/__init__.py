"""Boards -> Markdown, CSV, JSON, LaTeX, terminal: pure functions, the same bytes for the same records."""
