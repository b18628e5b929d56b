"""`openmae probe`: features of a frozen encoder, several linear heads on them, and the choice among them."""
