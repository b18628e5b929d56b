"""What images are labelled with: classes or numbers, where they are read, and the subsets made by them."""
