"""What a trained network is worth, and what its probabilities are."""
