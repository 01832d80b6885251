"""Commands as users start them."""
