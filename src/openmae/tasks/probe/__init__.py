"""`openmae probe`: features of a frozen encoder, several linear heads on them, and which of these is kept."""
