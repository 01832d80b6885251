"""One library on one rank; these import torch."""
