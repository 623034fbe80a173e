"""What the module does without its window."""
