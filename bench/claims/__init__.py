"""Claims of robustness, measured again."""
