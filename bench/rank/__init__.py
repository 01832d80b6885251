"""The code of one rank. Only this room and the sessions import torch."""
