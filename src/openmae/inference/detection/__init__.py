"""A detector put to use: what it finds in whole images, and how well."""
