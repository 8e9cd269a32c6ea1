"""One step of a batch that several processes share: which process holds which image, and sums over all of them."""
