"""The model file: its spec, where each kind of file keeps it, and what is checked before it is run."""
