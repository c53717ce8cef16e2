"""Nets and attacks of other packages."""
