"""Where images come from: every kind of DATA, opened, split, cut into tiles, and seen as samples by index."""
