"""What computes the files of a format: sessions of the runtimes, and the predictors and decoders that ask them."""
