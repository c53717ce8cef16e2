"""The attacks of the referee, and the suite that decides their order and prices."""
