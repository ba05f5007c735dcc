"""The networks, their options and their pretrained weights."""
