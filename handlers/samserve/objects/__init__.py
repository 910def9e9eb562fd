"""Objects that were found in a picture, as the client and the library return them."""
