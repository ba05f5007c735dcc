"""What comes from outside is read, and what goes out is written, in one place each."""
