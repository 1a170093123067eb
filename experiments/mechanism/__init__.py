"""How a trained GRU holds what it recalls."""
