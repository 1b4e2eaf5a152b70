"""What is shown in full size: a million records, and what they cost."""
