"""Weighting of tasks: by their gradients (`surgery`) and by their losses (`weighting`)."""
