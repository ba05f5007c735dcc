"""Agreement, accuracy and what they are worth."""
