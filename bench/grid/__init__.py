"""Grids of jobs: scheduling, worker processes and cost forecasts."""
