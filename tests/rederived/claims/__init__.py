"""What the documents say with numbers, and how each number follows from the records."""
