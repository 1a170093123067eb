"""Measurements of why gradients persist in a GRU, compared with a plain RNN and an LSTM."""
