"""Figure 9: partial fine-tuning of a trained model, between the linear probe and all of it."""
