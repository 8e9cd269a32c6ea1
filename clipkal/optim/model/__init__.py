"""What an optimiser asks of a model: its trainable parameters, its linear layers and its Jacobian, by the cheapest exact route."""
