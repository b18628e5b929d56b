"""`openmae tokenizer`, and what is measured while it trains: reconstructions of held-out images and codes in use."""
