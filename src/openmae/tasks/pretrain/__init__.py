"""`openmae pretrain`, and what is evaluated while it trains: held-out images and, with `--watch`, labelled ones."""
