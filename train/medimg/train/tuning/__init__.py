"""Hyperparameters by trials, through KerasTuner."""
