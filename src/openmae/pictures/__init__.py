"""Pictures for people: sheets of images, the text on them, and curves."""
