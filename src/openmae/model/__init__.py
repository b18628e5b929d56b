"""The paper's figure 1: patches, masking, encoder, decoder, target. Tensors in, tensors out."""
