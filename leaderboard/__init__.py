"""Records in, tables out: what is compared with what, and how it is shown."""
