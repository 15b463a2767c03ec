"""What a run gives to the Hugging Face Hub: a model card, and the model."""
