"""From DATA to a trained network: preparation, phases, checkpoints."""
