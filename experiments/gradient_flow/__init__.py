"""Why a GRU keeps gradients alive, as measured, beside the plain RNN and the LSTM."""
