"""The referee's attacks, and the suite that sets their order and prices."""
