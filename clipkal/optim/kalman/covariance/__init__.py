"""Covariances P of the parameters behind one interface (diagonal.py): diagonal, in the basis of the data, low rank, dense."""
