"""Kronecker-factored natural gradients: K-FAC, and RING and RENG, which regularise the norm of the gradient."""
