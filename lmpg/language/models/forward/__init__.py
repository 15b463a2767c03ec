"""The training forward: hidden states of ragged batches without padding."""
