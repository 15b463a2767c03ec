"""What learning from a fixed set computes with the model: SFT, DPO, KTO, reward models."""
