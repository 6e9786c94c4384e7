"""One short file a family: the forward pass in the words of `nn`, and the tables around it."""
