"""openmae <-> the formats of the field: the reference .pth, timm, transformers, MoCo v3, DINO, BEiT, ViTDet, ONNX."""
