"""What each backend runs on a rank. Only these modules and bench.rank import torch."""
