"""Numbers that somebody claims, measured again."""
