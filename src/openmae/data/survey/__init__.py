"""One pass over every image of a data set: statistics, exact copies and near-duplicates."""
