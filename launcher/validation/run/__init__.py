"""Where and when nodes are validated, and what is written about them."""
