"""Our models as other programs read them, each checked before it is kept."""
