"""`openmae pretrain`, and what is looked at while it trains: held-out images, and labels where asked."""
