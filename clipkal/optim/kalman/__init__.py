"""Recursive Kalman filters over the parameters of a model: the general filter, its parts, and the filters of the papers."""
