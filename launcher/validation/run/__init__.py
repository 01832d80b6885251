"""Where and when nodes are validated, and the reports about them."""
