"""The verbs of medimg-train."""
