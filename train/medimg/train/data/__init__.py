"""From DATA to arrays and batches: division, decoding, augmentation, and what is wrong with a set."""
