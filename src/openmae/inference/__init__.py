"""A trained model put to use: loaded, features and predictions of images, and how good these are."""
