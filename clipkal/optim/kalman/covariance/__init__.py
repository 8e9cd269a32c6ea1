"""Covariances P of the parameters behind one interface (base.py): diagonal (also in the basis of the data), low rank, dense."""
